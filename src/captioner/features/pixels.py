"""Pictures for a trained encoder, read from their files when a batch asks for them.

Shapes: I pictures in a batch, S picture side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.images import load_image
from captioner.data.transforms import ImageTransform

KEPT_BYTES = 1 << 28  # pictures that are kept in memory: 20,000 of 64 x 64, 1,700 of 224 x 224


class Pictures:
    """An ImageSource that reads the picture files when they are asked for.

    Where all of them, resized, take no more than `keep_bytes`, each is read once and kept as
    bytes: then `kept` says that later passes touch no file.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        transform: ImageTransform,
        *,
        keep_bytes: int = KEPT_BYTES,
    ) -> None:
        self.images, self.transform = images, transform
        shape = (len(images), transform.size, transform.size, 3)
        self.kept = math.prod(shape) <= keep_bytes
        # Untouched memory costs nothing yet.
        self._pixels = torch.empty(shape if self.kept else 0, dtype=torch.uint8)
        self._read = torch.zeros(len(images), dtype=torch.bool)

    def __call__(self, rows: Tensor) -> Tensor:
        """Pictures [I, 3, S, S]; ImageError names a file that cannot be read."""
        if not self.kept:
            return self.transform.normalise(torch.stack([self._load(row) for row in rows.tolist()]))
        for row in rows[~self._read[rows]].tolist():
            self._pixels[row] = self._load(row)
            self._read[row] = True
        return self.transform.normalise(self._pixels[rows])

    def _load(self, row: int) -> Tensor:
        return self.transform.pixels(load_image(self.images[row].path))
