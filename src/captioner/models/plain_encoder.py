"""A small convolutional encoder for small images.

ImageNet networks halve an image five times, which leaves 2 x 2 regions of 64 x 64 pixels. This one
halves it three times, by max pooling, and trains quickly from scratch.
"""

from torch import nn

from captioner.errors import ConfigError
from captioner.models.encoder import Trunk
from captioner.models.transforms import ImageTransform
from captioner.models.weights import load_weights, read_state_dict

SIZES = {"plain_small": (16, 32, 64, 96), "plain": (16, 48, 96, 192)}


def plain_trunk(name: str, *, weights: str, output: str) -> Trunk:
    """Four 3x3 convolutions with BatchNorm and ReLU, the first three max-pooled.

    `name` is "plain" or "plain_small", `weights` "random" or a file; errors as in `make_encoder`.
    """
    if name not in SIZES:
        raise ConfigError(f"encoder.name must be one of {', '.join(SIZES)}, got {name!r}")
    widths = SIZES[name]
    network = nn.Sequential()
    for i, (before, width) in enumerate(zip((3, *widths), widths, strict=False), start=1):
        convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)
        stage = nn.Sequential(
            nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        )
        if i < len(widths):
            stage.append(nn.MaxPool2d(2))
        network.add_module(f"stage{i}", stage)
    if output == "pooled":
        # As in VGG: a coarse map flattened to one vector keeps positions (left, above).
        network.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()))
    if weights != "random":
        load_weights(network, read_state_dict(weights), source=weights)
    half, quarter = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Trunk(network, name, ImageTransform(size=64, resize="squash", mean=half, std=quarter))
