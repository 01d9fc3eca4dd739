"""An image becomes a tensor: resizing, cropping and normalising.

Letters: S side of the square tensor.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioner.errors import ConfigError

Resize = int | Literal["squash"]
_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """RGB image -> float32 tensor [3, S, S], (value / 255 - mean) / std for each channel.

    `resize` is the short side in pixels before the centre crop to `size`, or "squash": the whole
    image is resized to `size` x `size`, whatever its proportions. Two transforms are equal exactly
    when their `str()` are. Raises ConfigError for settings that contradict each other.
    """

    size: int
    resize: Resize
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size must be at least 1 pixel, got {self.size}")
        if isinstance(self.resize, str):
            if self.resize != "squash":
                raise ConfigError(f'resize must be "squash" or pixels, got "{self.resize}"')
        elif self.resize < self.size:
            raise ConfigError(f"resize={self.resize} is smaller than the crop, size={self.size}")
        if self.interpolation not in _FILTERS:
            known = ", ".join(_FILTERS)
            raise ConfigError(f'interpolation must be one of {known}, got "{self.interpolation}"')
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"mean and std need three values, std > 0: {self.mean}, {self.std}")

    def adjusted(self, *, size: int | None = None, resize: Resize | None = None) -> ImageTransform:
        """This transform at another size; without `resize` the crop keeps its share."""
        new_size = self.size if size is None else size
        kept = self.resize if resize is None else resize
        if resize is None and not isinstance(self.resize, str):
            kept = round(self.resize * new_size / self.size)
        return dataclasses.replace(self, size=new_size, resize=kept)

    @property
    def crop(self) -> float | None:
        """The side of the centre crop as a share of the image's shorter side; None for "squash"."""
        return None if isinstance(self.resize, str) else self.size / self.resize

    def __call__(self, image: Image.Image) -> Tensor:
        """[3, S, S], with channels-last strides, as the pixels lie."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """The image resized and cropped, as uint8 [S, S, 3]."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        sides, left, top = self.scaled(*image.size)
        image = image.resize(sides, Image.Resampling[self.interpolation.upper()])
        if sides != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(image))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [..., S, S, 3] of one or several images -> [..., 3, S, S], channels-last."""
        # One multiplication and one addition instead of /255, -mean, /std; by whole rows of the
        # image, which is several times faster than by three channels.
        std = torch.tensor(self.std, dtype=torch.float64)
        scale = (1 / (255 * std)).float().repeat(self.size).to(pixels.device)
        shift = (-torch.tensor(self.mean, dtype=torch.float64) / std).float().repeat(self.size)
        rows = pixels.flatten(-2).float().mul_(scale).add_(shift.to(pixels.device))
        return rows.view(pixels.shape).movedim(-1, -3)

    def scaled(self, width: int, height: int) -> tuple[tuple[int, int], int, int]:
        """The (width, height) that an image is resized to, and the crop's left and top, rounded as
        in torchvision's presets."""
        if isinstance(self.resize, str):
            return (self.size, self.size), 0, 0
        short = min(width, height)
        sides = (int(self.resize * width / short), int(self.resize * height / short))
        left, top = (round((side - self.size) / 2) for side in sides)
        return sides, left, top
