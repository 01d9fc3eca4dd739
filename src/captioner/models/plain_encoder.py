"""A small convolutional encoder for small images, built of torchvision's blocks.

ImageNet networks halve an image five times; of one of 64 pixels nothing is left that tells a
triangle from a star. This one halves it three times, by maxima, and learns quickly from scratch.
"""

from __future__ import annotations

from torch import nn
from torchvision.ops import Conv2dNormActivation

from captioner.errors import ConfigError
from captioner.models.encoder import Encoder
from captioner.models.transforms import ImageTransform, Resize
from captioner.models.weights import load_weights, read_state_dict

SIZES = {"plain_small": (16, 32, 64, 96), "plain": (16, 48, 96, 192)}


def plain_encoder(
    name: str,
    *,
    weights: str = "random",
    output: str = "pooled",
    grid_size: int | None = None,
    size: int | None = None,
    resize: Resize | None = None,
) -> Encoder:
    """Four 3x3 convolutions with BatchNorm and ReLU, the first three max-pooled.

    `name` is "plain" (16 to 192 channels) or "plain_small" (16 to 96).
    `weights` is "random" (torch's generator) or a file. Raises ConfigError for an unknown name,
    CheckpointError for a file that does not fit.
    """
    if name not in SIZES:
        raise ConfigError(f"encoder.name must be one of {', '.join(SIZES)}, got {name!r}")
    widths = SIZES[name]
    trunk = nn.Sequential()
    for i, (before, width) in enumerate(zip((3, *widths), widths, strict=False), start=1):
        stage = nn.Sequential(Conv2dNormActivation(before, width, 3))
        if i < len(widths):
            stage.append(nn.MaxPool2d(2))
        trunk.add_module(f"stage{i}", stage)
    if output == "pooled":
        # As VGG does: a coarse map laid out as one vector still knows what is left of what.
        trunk.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()))
    if weights != "random":
        load_weights(trunk, read_state_dict(weights), source=weights)
    transform = ImageTransform(
        size=64, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    ).adjusted(size=size, resize=resize)
    return Encoder(trunk, name=name, transform=transform, output=output, grid_size=grid_size)
