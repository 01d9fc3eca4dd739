"""Picture files -> RGB pixels on a device, many at a time: JPEGs by torchvision.

On CUDA its nvJPEG decodes a whole list at once; elsewhere, and where torchvision was built without
it, libjpeg does in threads and the pixels are copied. What these would not read as `load_image`
does goes to Pillow: another format, CMYK or grey, a picture that is turned, cut off or broken. So
its pixels are the same, and its error is the one that names the file.

Shapes: B pictures, h w a picture's own sides.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from captioner.data.images import MAX_PIXELS, load_image

_ORIENTATION, _UPRIGHT = 0x0112, 1  # EXIF's tag
_END_OF_IMAGE = b"\xff\xd9"
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def read_pictures(
    paths: Sequence[Path], device: torch.device, pool: ThreadPoolExecutor
) -> list[Tensor]:
    """RGB pixels [3, h, w] (uint8, on `device`) of B pictures; the threads of `pool` read.

    Raises ImageError naming the first picture that cannot be read.
    """
    found = enumerate(pool.map(_jpeg_bytes, paths))
    jpegs = {row: data for row, data in found if data is not None}
    decoded = zip(jpegs, _decoded(list(jpegs.values()), device, pool.map), strict=True)
    pictures = {row: pixels.to(device) for row, pixels in decoded if pixels is not None}
    left = [row for row in range(len(paths)) if row not in pictures]
    for row, picture in zip(left, pool.map(load_image, [paths[row] for row in left]), strict=True):
        pictures[row] = pixels_of(picture).to(device)
    return [pictures[row] for row in range(len(paths))]


def pixels_of(picture: Image.Image) -> Tensor:
    """A PIL picture's RGB pixels [3, h, w] (uint8)."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def _jpeg_bytes(path: Path) -> Tensor | None:
    """The file's bytes; None where torchvision may not give what Pillow would."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:  # the head only
            plain = image.format == "JPEG" and image.mode == "RGB"
            plain &= image.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
            plain &= image.width * image.height <= MAX_PIXELS
    except Exception:  # whatever is wrong with it, Pillow will say it with the file's name
        return None
    # A decoder on a GPU may fill in grey what is missing of a file that was cut off.
    whole = data.endswith(_END_OF_IMAGE)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if plain and whole else None


def _decoded(jpegs: list[Tensor], device: torch.device, map_in_threads: Map) -> list[Tensor | None]:
    """Pixels [3, h, w] of each JPEG's bytes, None for a broken one."""
    if device.type == "cuda" and jpegs and has_nvjpeg(device):
        try:
            return list(decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device))
        except RuntimeError:  # one of them is broken, it does not say which
            return [_decoded_or_none(jpeg, device) for jpeg in jpegs]
    decode = functools.partial(_decoded_or_none, device=torch.device("cpu"))
    return list(map_in_threads(decode, jpegs))


def _decoded_or_none(jpeg: Tensor, device: torch.device) -> Tensor | None:
    try:
        (pixels,) = decode_jpeg([jpeg], mode=ImageReadMode.RGB, device=device)
    except RuntimeError:
        return None
    return pixels


@functools.lru_cache
def has_nvjpeg(device: torch.device) -> bool:
    """Whether torchvision decodes JPEGs on that GPU, that is, was built with nvJPEG."""
    black = encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))
    return _decoded_or_none(black, device) is not None
