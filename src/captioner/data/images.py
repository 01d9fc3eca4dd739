"""Opening an image: upright, 8-bit RGB, or one clear error."""

import contextlib
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioner.errors import DataError, ImageError
from captioner.files import refuse_special

MAX_PIXELS = 178_956_970  # where Pillow itself stops
_PNG = b"\x89PNG\r\n\x1a\n"


def load_image(
    path: Path | str, *, max_pixels: int = MAX_PIXELS, kinds: tuple[str, ...] | None = None
) -> Image.Image:
    """The image as PIL RGB, turned upright by its EXIF tag; of an animation the first frame.

    Grey, palette, CMYK and 16-bit images are converted (16-bit scaled, not clipped), transparency
    is laid over white. ImageError when the file is missing, truncated, no image (or of none of
    Pillow's formats `kinds`), has more than `max_pixels` pixels, or an unknown range.
    """
    path = Path(path)
    try:
        refuse_special(path)
        _check_sums(path)
        with Image.open(path, formats=kinds) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{path} is too large an image: {width} x {height} pixels, expected at most "
                    f"{max_pixels} in all"
                )
            image.load()
            return as_rgb(image, path)
    except FileNotFoundError as error:
        raise ImageError(f"there is no image {path}") from error
    except UnidentifiedImageError as error:
        expected = f" ({', '.join(kinds)})" if kinds else ""
        with path.open("rb") as file:
            start = file.read(8)
        found = f"it starts with {start!r}" if start else "the file is empty"
        raise ImageError(f"{path} is not an image{expected}: {found}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large an image: {error}") from error
    except ImageError:
        raise
    except DataError as error:  # no ordinary file
        raise ImageError(f"cannot read the image {path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: what Pillow's readers do with damaged files
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ImageError(f"cannot read the image {path}, it may be damaged: {reason}") from error


def _check_sums(path: Path) -> None:
    """ImageError where a part of a PNG has another checksum than it says: Pillow does not look at
    those of the pixels. What is cut short it reports itself."""
    with path.open("rb") as file:
        if file.read(len(_PNG)) != _PNG:
            return
        data = memoryview(file.read())
    start = 0
    while len(data) - start >= 12:
        size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 8 + size
        stored = data[end : end + 4]
        if len(stored) == 4 and zlib.crc32(data[start + 4 : end]) != int.from_bytes(stored, "big"):
            part = bytes(kind).decode("latin-1")
            raise ImageError(f"{path} is damaged: the checksum of its part {part!r} is wrong")
        if kind == b"IEND":
            return
        start = end + 4


def as_rgb(image: Image.Image, path: Path | str = "the image") -> Image.Image:
    """An opened image as `load_image` gives it; ImageError for an unknown range of values."""
    # A broken EXIF block does not make the pixels worse: such an image is not turned.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_wide_grey(path, image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    # Also for RGB: convert() returns a copy that no longer refers to the file.
    return image.convert("RGB")


def _from_wide_grey(path: Path | str, image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8; Pillow's own convert() would clip everything above 255."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 65535:
        raise ImageError(
            f"{path} has grey values from {low:g} to {high:g} (mode {image.mode}), whose range is "
            "unknown; expected 8 or 16 bits a channel"
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
