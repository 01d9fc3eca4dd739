"""`ImageTransform` in torch's own operations: a batch of pictures at a time, on any device.

Letters: B pictures, S the side of the square tensor, h w a picture's own sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from captioner.data.transforms import ImageTransform
from captioner.errors import ConfigError

_FILTERS = ("nearest", "bilinear", "bicubic")  # that torch has for tensors


def transform_batch(transform: ImageTransform, pictures: Sequence[Tensor]) -> Tensor:
    """RGB pixels [3, h, w] (uint8) of B pictures -> [B, 3, S, S], channels-last, normalised.

    Pictures of equal sides, which most of a set are, go through each operation together. The filter
    is antialiased and its result rounded to bytes, as Pillow's is; a byte may still differ by one.
    Raises ConfigError for a filter that torch does not have.
    """
    if transform.interpolation not in _FILTERS:
        raise ConfigError(
            f"encoder.reader=torchvision resizes by {', '.join(_FILTERS)}, and this encoder needs "
            f"{transform.interpolation}: take encoder.reader=pil"
        )
    rows_of_shape = defaultdict(list)
    for row, picture in enumerate(pictures):
        rows_of_shape[picture.shape].append(row)
    side = transform.size
    squares = pictures[0].new_empty(len(pictures), 3, side, side)
    for rows in rows_of_shape.values():
        squares[rows] = _squares(transform, torch.stack([pictures[row] for row in rows]))
    return transform.normalise(squares.permute(0, 2, 3, 1).contiguous())


def _squares(transform: ImageTransform, pictures: Tensor) -> Tensor:
    """[B, 3, h, w] -> [B, 3, S, S], still bytes."""
    (width, height), left, top = transform.scaled(pictures.shape[3], pictures.shape[2])
    resized = functional.resize(
        pictures, [height, width], InterpolationMode(transform.interpolation), antialias=True
    )
    return resized[..., top : top + transform.size, left : left + transform.size]
