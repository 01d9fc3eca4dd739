"""The encoder: a convolutional (or other) network cut before its classifier, and its transform.

Letters: B images, S image side, R regions (1 when pooled), F image feature, h w the grid's sides, C
channels of the frozen stages' output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.errors import ConfigError
from captioner.models.split import SplitNetwork, split_network
from captioner.models.transforms import ImageTransform

BATCH_NORMS = ("frozen", "averaged")


def _call(trunk: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = trunk(images)
    return features


@dataclass(frozen=True)
class Trunk:
    """A network cut before its classifier, with the transform of its images.

    `features` computes them from network and images where calling the network is not enough;
    `shape` is theirs, [F] or [F, h, w], of images S x S, where it need not be measured.
    """

    network: nn.Module
    name: str
    transform: ImageTransform
    features: Callable[[nn.Module, Tensor], Tensor] = _call
    shape: Callable[[int], tuple[int, ...]] | None = None


class Encoder(nn.Module):
    """Images [B, 3, S, S] -> features [B, R, F], frozen until `freeze_before` says otherwise.

    Once `split`, it takes what its frozen stages make of images ([B, R', C]) in their place too; in
    training as `cropped` by up to `crop` cells.

    `trunk`, or `features` of it, maps images to [B, F] (output "pooled") or to [B, F, h, w] (output
    "grid", R = h w), which `grid_size` averages to `grid_size` x `grid_size`. `feature_dim` (F),
    `regions` (R) and `grid` (h, w) are measured, unless `shape` says what the trunk makes of S x S
    images. ConfigError when the trunk cannot take the transform's images.
    """

    def __init__(
        self,
        trunk: nn.Module,
        *,
        name: str,
        transform: ImageTransform,
        output: str = "pooled",
        grid_size: int | None = None,
        features: Callable[[nn.Module, Tensor], Tensor] = _call,
        shape: Callable[[int], tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        if output not in ("pooled", "grid"):
            raise ConfigError(f'encoder output must be "pooled" or "grid", got "{output}"')
        if grid_size is not None and (output != "grid" or grid_size < 1):
            raise ConfigError(f'grid_size={grid_size} needs output "grid" and at least 1')
        self.name, self.output, self.grid_size = name, output, grid_size
        self.transform = transform
        self._features, self._shape = features, shape
        # Convolutions on a CPU, and on tensor cores, are faster with channels-last memory.
        self.trunk = trunk.to(memory_format=torch.channels_last)
        self._frozen: tuple[str, ...] = ()
        self._waiting: tuple[str, ...] = ()  # of those that are trained, not yet
        self._batch_norm, self.crop = "averaged", 0
        self.freeze_before(None)
        self.regions, self.feature_dim = self._measure()

    def forward(self, images: Tensor) -> Tensor:
        """The features [B, R, F] of normalised images [B, 3, S, S], or of what `frozen_output`
        makes of them."""
        if images.dim() == 3:
            assert self._cut is not None
            if self.training and self.crop:
                images = cropped(images, self._cut.shape[1:], self.crop)
            return self._as_regions(self._cut.second_part(images))
        images = images.contiguous(memory_format=torch.channels_last)
        return self._as_regions(self._features(self.trunk, images))

    def frozen_output(self, images: Tensor) -> Tensor:
        """What the frozen stages make of images, as regions [B, R', C]; needs `split`."""
        assert self._cut is not None
        return self._cut.first_part(images.contiguous(memory_format=torch.channels_last))

    def _as_regions(self, features: Tensor) -> Tensor:
        """What the trunk gives, [B, F] or [B, F, h, w], as [B, R, F]."""
        if self.output == "pooled":
            return features.unsqueeze(1)
        if self.grid_size is not None:
            features = F.adaptive_avg_pool2d(features, self.grid_size)
        return features.flatten(2).transpose(1, 2)

    def _measure(self) -> tuple[int, int]:
        """R and F of a blank image, and the sides of its grid."""
        side = self.transform.size
        blank = self._blank()
        try:
            with torch.no_grad():
                if self._shape is not None:
                    found = torch.empty(1, *self._shape(side))
                else:
                    found = self._features(self.trunk, blank)
                features = self._as_regions(found)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"{self.name} (output {self.output}) cannot take images of {side} x {side}: "
                f"{reason}"
            ) from error
        if features.dim() != 3:
            raise ConfigError(f"{self.name} has no {self.output} features: {list(features.shape)}")
        self.grid: tuple[int, ...] = tuple(found.shape[2:])  # empty when pooled
        return features.shape[1], features.shape[2]

    def _blank(self) -> Tensor:
        """An image [1, 3, S, S] of zeros."""
        side = self.transform.size
        weight = next(self.trunk.parameters(), torch.empty(0))
        return torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)

    @property
    def stages(self) -> tuple[str, ...]:
        """The trunk's parts in the order of computation: conv1, bn1, layer1.0, layer1.1, ..."""
        total = sum(parameter.numel() for parameter in self.trunk.parameters())
        return tuple(_parts(self.trunk, "", total))

    @property
    def trainable(self) -> bool:
        """Whether any part of the encoder is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def freeze_before(self, stage: str | None, *, batch_norm: str = "averaged") -> None:
        """Train `stage` and everything after it; None freezes the whole encoder.

        A frozen part has no gradient and stays in evaluation mode, whatever `train()` says. A stage
        is one of `stages` or a common prefix ("layer4"); ConfigError listing them otherwise.
        `batch_norm` of the stages that are trained: "averaged" normalises by a batch's statistics
        and averages them, as usual in training; "frozen" keeps those of the weights, and trains
        scale and shift alone.
        """
        if batch_norm not in BATCH_NORMS:
            raise ConfigError(f'batch_norm must be "frozen" or "averaged", got "{batch_norm}"')
        self._batch_norm = batch_norm
        self._cut: SplitNetwork | None = None
        self.trunk.requires_grad_(False)
        stages = self.stages
        starts = [i for i, part in enumerate(stages) if f"{part}.".startswith(f"{stage}.")]
        if stage is not None and not starts:
            short = dict.fromkeys(".".join(part.split(".")[:2]) for part in stages)
            raise ConfigError(
                f'{self.name} has no stage "{stage}" to train from; it has {", ".join(short)}'
            )
        first = len(stages) if stage is None else starts[0]
        self._frozen, self._waiting = stages[:first], ()
        self._named = stage or ""
        if first == 0:  # also what belongs to no stage, such as a class token
            self.trunk.requires_grad_(True)
        for part in stages[first:]:
            self.trunk.get_submodule(part).requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode of the parts that are trained; the frozen ones stay in evaluation."""
        super().train(mode)
        if not self.trainable:
            self.trunk.eval()
        if self._cut is not None:  # whose containers are copies
            self._cut.after.train(self.trunk.training)
        for part in (*self._frozen, *self._waiting):
            self.trunk.get_submodule(part).eval()
        if self._batch_norm == "frozen":
            for module in self.trunk.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @property
    def trained_stages(self) -> tuple[tuple[str, ...], ...]:
        """The parts that are trained, stage by stage: stages are what is named like that of
        `freeze_before` (blocks.5: blocks.5 and blocks.6), each with all that follows it."""
        parent, depth = self._named.rpartition(".")[0], self._named.count(".") + 1
        found: dict[str, list[str]] = {}
        for part in self.stages[len(self._frozen) :]:
            name = ".".join(part.split(".")[:depth])
            weights = any(True for _ in self.trunk.get_submodule(name).parameters())
            if not found or (name.rpartition(".")[0] == parent and weights):
                found.setdefault(name, [])
            found[[*found][-1]].append(part)
        return tuple(map(tuple, found.values()))

    def train_last(self, count: int) -> None:
        """Of the `trained_stages` train the last `count`, at least 1; the others wait as if they
        were frozen."""
        stages = self.trained_stages
        self._waiting = tuple(part for stage in stages[:-count] for part in stage)
        for part in (part for stage in stages for part in stage):
            self.trunk.get_submodule(part).requires_grad_(part not in self._waiting)
        self.train(self.training)

    @property
    def first_trained(self) -> str | None:
        """The stage before which all are frozen; None where nothing is trained, or nothing
        frozen."""
        return self.stages[len(self._frozen)] if self.trainable and self._frozen else None

    def split(self) -> bool:
        """Cut the network before its first trained stage, so that `forward` takes what
        `frozen_output` makes of images, [B, R', C], in their place.

        False where nothing is frozen, or nothing trained, or where the stages are no chain.
        """
        if self.first_trained is None:
            return False
        training, noise = self.training, torch.Generator().manual_seed(0)
        blank = self._blank()
        image = torch.randn(blank.shape, generator=noise).to(blank)
        image = image.contiguous(memory_format=torch.channels_last)
        self.eval()
        self._cut = split_network(self.trunk, self.stages, len(self._frozen), image, self._features)
        self.train(training)
        return self._cut is not None

    @property
    def frozen_shape(self) -> tuple[int, ...]:
        """What the frozen stages make of an image, [C, h, w] or [C]; needs `split`."""
        assert self._cut is not None
        return self._cut.shape

    @property
    def frozen_regions(self) -> tuple[int, int]:
        """(R', C) of `frozen_output`."""
        assert self._cut is not None
        return self._cut.regions_shape

    def fingerprint(self) -> str:
        """A sha256 (hex) of all that decides an image's features: settings, transform, tensors."""
        settings = (self.name, self.output, self.grid_size, str(self.transform))
        return _digest(settings, self.trunk.state_dict())

    def frozen_fingerprint(self) -> str:
        """The same of all that decides what the frozen stages make of an image."""
        trained = tuple(f"{part}." for part in self.stages[len(self._frozen) :])
        state = self.trunk.state_dict().items()
        frozen = {name: tensor for name, tensor in state if not name.startswith(trained)}
        return _digest((self.name, str(self.transform), "before", self.first_trained), frozen)


def cropped(regions: Tensor, grid: Sequence[int], most: int) -> Tensor:
    """A random crop of each map, given as regions [B, h w, C] of a `grid` (h, w): padded by `most`
    cells that repeat its edge, and cut to its size again."""
    sides = [
        (torch.arange(side) + torch.randint(-most, most + 1, (len(regions), 1))).clamp(0, side - 1)
        for side in grid
    ]
    rows, columns = (side.to(regions.device) for side in sides)  # [B, h], [B, w]
    cells = rows.unsqueeze(2) * grid[1] + columns.unsqueeze(1)  # [B, h, w]
    images = torch.arange(len(regions), device=regions.device).unsqueeze(1)
    return regions[images, cells.flatten(1)]


def _digest(settings: tuple[object, ...], tensors: Mapping[str, Tensor]) -> str:
    """A sha256 (hex) of settings and tensors."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def _parts(module: nn.Module, prefix: str, total: int) -> Iterator[str]:
    """Names of the module's parts; one that is a sequence, or most of the network, is opened."""
    for name, child in module.named_children():
        size = sum(parameter.numel() for parameter in child.parameters())
        listed = isinstance(child, nn.Sequential | nn.ModuleList)
        if (listed or 2 * size > total) and any(child.children()):
            yield from _parts(child, f"{prefix}{name}.", total)
        else:
            yield prefix + name
