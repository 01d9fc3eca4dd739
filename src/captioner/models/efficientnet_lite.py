"""EfficientNet-lite 0, 1 and 2 in plain PyTorch, so that no library has to be imported for them.

The networks of https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite,
with the names and, to the last bit, the features of timm's tf_efficientnet_lite0 to 2.

Letters: B images, C channels, F image feature, h w the grid's sides.
"""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from captioner.errors import ConfigError
from captioner.models.encoder import Trunk
from captioner.models.timm_encoder import timm_trunk
from captioner.models.transforms import ImageTransform
from captioner.models.weights import (
    load_weights,
    read_state_dict,
    registry_weights,
    rename_efficientnet_lite,
    weights_file,
)


class Stage(NamedTuple):
    """Blocks of one width: their number, kernel, first stride, expansion and channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


class Variant(NamedTuple):
    """A network's width and depth beside lite0's, its images' side and the crop's share of it."""

    width: float
    depth: float
    size: int
    crop: float


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
VARIANTS = {
    "lite0": Variant(1.0, 1.0, 224, 0.875),
    "lite1": Variant(1.0, 1.1, 240, 0.882),
    "lite2": Variant(1.1, 1.2, 260, 0.89),
}
STEM, FEATURES = 32, 1280  # channels of the first and of the last convolution, in all of them
_EPS = 1e-3  # of the batch norms


def efficientnet_lite_trunk(name: str, *, weights: str, output: str) -> Trunk:
    """EfficientNet-lite "lite0", "lite1" or "lite2": 1280 features, 224, 240 or 260 pixels.

    `weights`: "registry" (ImageNet), a file, or "timm" (downloaded) and "random", for which it is
    timm's own network. Images are normalised to -1..1, which these weights need: ImageNet's
    constants cost them 11 points.
    """
    if name not in VARIANTS:
        raise ConfigError(f"EfficientNet-lite comes as lite0, lite1 and lite2, not as {name}")
    named = f"tf_efficientnet_{name}"
    file = registry_weights(name) if weights == "registry" else weights_file(weights, "timm")
    if file is None:
        return timm_trunk(named, weights=weights, output=output)
    network = EfficientNetLite(VARIANTS[name])
    state = read_state_dict(file)
    if "_conv_stem.weight" in state:
        lengths = [len(stage) for stage in network.blocks]  # type: ignore[arg-type]
        state = rename_efficientnet_lite(state, stage_lengths=lengths)
    load_weights(network, state, source=str(file), ignore=("classifier",))
    transform = _transform(VARIANTS[name])
    if output == "grid":
        whole = EfficientNetLite.feature_map
        return Trunk(network, named, transform, whole, _shape_of_map)  # type: ignore[arg-type]
    return Trunk(network, named, transform, shape=lambda _: (FEATURES,))


def _shape_of_map(side: int) -> tuple[int, ...]:
    """Of images side x side: five convolutions halve them, and round up."""
    return FEATURES, math.ceil(side / 32), math.ceil(side / 32)


def _transform(variant: Variant) -> ImageTransform:
    half = (0.5, 0.5, 0.5)
    resize = math.floor(variant.size / variant.crop)
    return ImageTransform(
        size=variant.size, resize=resize, interpolation="bicubic", mean=half, std=half
    )


class EfficientNetLite(nn.Module):
    """Images [B, 3, S, S] -> features [B, F]; the classifier is cut off."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.conv_stem = _conv(3, STEM, 3, stride=2)
        self.bn1 = BatchNormAct(STEM)
        channels, stages = STEM, []
        for number, stage in enumerate(STAGES):
            scaled = 0 < number < len(STAGES) - 1  # the first and the last keep their depth
            count = math.ceil(stage.repeats * variant.depth) if scaled else stage.repeats
            width, blocks = _rounded(stage.channels * variant.width), []
            for block in range(count):
                stride = stage.stride if block == 0 else 1
                kind = DepthwiseBlock if stage.expansion == 1 else InvertedBlock
                blocks.append(kind(channels, width, stage, stride))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _conv(channels, FEATURES, 1)
        self.bn2 = BatchNormAct(FEATURES)
        self.global_pool = MeanPool()
        self.classifier = nn.Identity()

    def feature_map(self, images: Tensor) -> Tensor:
        """The map [B, F, h, w] before the pooling."""
        found: Tensor = self.blocks(self.bn1(self.conv_stem(images)))
        return self.bn2(self.conv_head(found))

    def forward(self, images: Tensor) -> Tensor:
        """The features [B, F]."""
        pooled: Tensor = self.global_pool(self.feature_map(images))
        return pooled


class MeanPool(nn.Module):
    """The mean over the map."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, F, h, w] -> [B, F]."""
        return F.adaptive_avg_pool2d(images, 1).flatten(1)


class BatchNormAct(nn.BatchNorm2d):
    """Batch norm, and ReLU up to 6 unless `act` is false."""

    def __init__(self, channels: int, *, act: bool = True) -> None:
        super().__init__(channels, eps=_EPS)
        self.act = nn.ReLU6() if act else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, h, w]."""
        found: Tensor = self.act(super().forward(input))
        return found


class DepthwiseBlock(nn.Module):
    """A depthwise convolution and a pointwise one, without an activation after it."""

    def __init__(self, channels: int, width: int, stage: Stage, stride: int) -> None:
        super().__init__()
        self.skip = stride == 1 and channels == width
        self.conv_dw = _conv(channels, channels, stage.kernel, stride=stride, groups=channels)
        self.bn1 = BatchNormAct(channels)
        self.conv_pw = _conv(channels, width, 1)
        self.bn2 = BatchNormAct(width, act=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, h, w]."""
        found: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(images))))
        return found + images if self.skip else found


class InvertedBlock(nn.Module):
    """Channels expanded, convolved one by one, and projected, without an activation after it."""

    def __init__(self, channels: int, width: int, stage: Stage, stride: int) -> None:
        super().__init__()
        self.skip = stride == 1 and channels == width
        middle = _rounded(channels * stage.expansion)
        self.conv_pw = _conv(channels, middle, 1)
        self.bn1 = BatchNormAct(middle)
        self.conv_dw = _conv(middle, middle, stage.kernel, stride=stride, groups=middle)
        self.bn2 = BatchNormAct(middle)
        self.conv_pwl = _conv(middle, width, 1)
        self.bn3 = BatchNormAct(width, act=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, h, w]."""
        found: Tensor = self.bn1(self.conv_pw(images))
        found = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(found))))
        return found + images if self.skip else found


class SameConv(nn.Conv2d):
    """Padded as TensorFlow does with a stride: to ceil(side / stride), the odd pixel at the end."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, h, w]."""
        pads: list[int] = []
        for axis in (1, 0):  # F.pad begins with the last
            side, kernel, stride = input.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            pad = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(F.pad(input, pads))


def _conv(channels: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return SameConv(channels, width, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2, groups=groups, bias=False)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, but no less than 0.9 of the channels."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
