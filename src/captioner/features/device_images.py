"""Image files -> normalised tensors on a device, a batch at a time.

JPEGs are decoded by torchvision: by nvJPEG on CUDA where it has it, else by libjpeg in threads.
What it would not read as `load_image` does (other formats, CMYK, grey, rotated, truncated, broken)
goes to Pillow.

Letters: B images, S side of the square tensor, h w an image's own height and width.
"""

import functools
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from captioner.data.images import MAX_PIXELS, load_image
from captioner.errors import ConfigError
from captioner.files import refuse_special
from captioner.models.transforms import ImageTransform

_ORIENTATION, _UPRIGHT = 0x0112, 1  # EXIF's tag
_END_OF_IMAGE = b"\xff\xd9"
_FILTERS = ("nearest", "bilinear", "bicubic")  # that torch has for tensors
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def read_images(
    paths: Sequence[Path], device: torch.device, pool: ThreadPoolExecutor
) -> list[Tensor]:
    """RGB pixels [3, h, w] (uint8, on `device`) of B images, read in `pool`; ImageError names the
    first that cannot be read."""
    found = enumerate(pool.map(_jpeg_bytes, paths))
    jpegs = {row: data for row, data in found if data is not None}
    decoded = zip(jpegs, _decoded(list(jpegs.values()), device, pool.map), strict=True)
    images = {row: pixels.to(device) for row, pixels in decoded if pixels is not None}
    left = [row for row in range(len(paths)) if row not in images]
    for row, image in zip(left, pool.map(load_image, [paths[row] for row in left]), strict=True):
        images[row] = pixels_of(image).to(device)
    return [images[row] for row in range(len(paths))]


def pixels_of(image: Image.Image) -> Tensor:
    """A PIL image's RGB pixels [3, h, w] (uint8)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def transform_batch(transform: ImageTransform, images: Sequence[Tensor]) -> Tensor:
    """`transform` in torch: pixels [3, h, w] (uint8) of B images -> [B, 3, S, S], channels-last.

    A byte may differ by one from Pillow's. ConfigError for a filter that torch does not have.
    """
    if transform.interpolation not in _FILTERS:
        raise ConfigError(
            f"encoder.reader=torchvision resizes by {', '.join(_FILTERS)}, and this encoder needs "
            f"{transform.interpolation}: take encoder.reader=pil"
        )
    rows_of_shape = defaultdict(list)
    for row, image in enumerate(images):
        rows_of_shape[image.shape].append(row)
    size = transform.size
    squares = images[0].new_empty(len(images), 3, size, size)
    for (_, h, w), rows in rows_of_shape.items():
        (width, height), left, top = transform.scaled(w, h)
        resized = functional.resize(
            torch.stack([images[row] for row in rows]),
            [height, width],
            InterpolationMode(transform.interpolation),
            antialias=True,
        )
        squares[rows] = resized[..., top : top + size, left : left + size]
    return transform.normalise(squares.permute(0, 2, 3, 1).contiguous())


def _jpeg_bytes(path: Path) -> Tensor | None:
    """The file's bytes; None where torchvision may not give what Pillow would."""
    try:
        refuse_special(path)
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:  # the header only
            plain = image.format == "JPEG" and image.mode == "RGB"
            plain &= image.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
            plain &= image.width * image.height <= MAX_PIXELS
    except Exception:  # Pillow reports it with the file's name
        return None
    # A decoder on a GPU may fill in grey what is missing of a truncated file.
    whole = data.endswith(_END_OF_IMAGE)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if plain and whole else None


def _decoded(jpegs: list[Tensor], device: torch.device, map_in_threads: Map) -> list[Tensor | None]:
    """Pixels [3, h, w] of each JPEG's bytes, None for a broken one."""
    if device.type == "cuda" and jpegs and has_nvjpeg(device):
        try:
            return list(decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device))
        except RuntimeError:  # one of them is broken, the error does not say which
            return [_decoded_or_none(jpeg, device) for jpeg in jpegs]
    decode = functools.partial(_decoded_or_none, device=torch.device("cpu"))
    return list(map_in_threads(decode, jpegs))


def _decoded_or_none(jpeg: Tensor, device: torch.device) -> Tensor | None:
    try:
        return decode_jpeg([jpeg], mode=ImageReadMode.RGB, device=device)[0]
    except RuntimeError:
        return None


@functools.lru_cache
def has_nvjpeg(device: torch.device) -> bool:
    """Whether torchvision decodes JPEGs on that GPU, that is, was built with nvJPEG."""
    black = encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))
    return _decoded_or_none(black, device) is not None
