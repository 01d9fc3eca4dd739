"""Typed settings of the benchmark suites; config.py puts them together."""

from __future__ import annotations

from dataclasses import dataclass, field

from captioner.benchmarks.lengths import DISTRIBUTIONS
from captioner.checks import in_range, one_of
from captioner.errors import ConfigError
from captioner.ops import BACKENDS

LSTM_DTYPES = ("float32", "float64", "bfloat16", "float16")
LSTM_BACKENDS = ("reference", "torch", "padded", "fused")


@dataclass
class FeaturesBenchmark:
    """suite=features. encoder: KIND/NAME as in the group encoder, or auto; picture_side: of drawn
    pictures, in pixels; batch_size and workers as a training run's encoder has them."""

    encoder: str = "auto"
    pictures: int = 512
    picture_side: int = 224
    batch_size: int = 32
    workers: int = 2

    def __post_init__(self) -> None:
        for key in ("pictures", "batch_size"):
            in_range(f"features.{key}", getattr(self, key), 1)
        in_range("features.picture_side", self.picture_side, 32)
        in_range("features.workers", self.workers, 0)
        if self.encoder != "auto":
            kind, slash, name = self.encoder.partition("/")
            if not (slash and name):
                raise ConfigError(
                    f"features.encoder must be auto or KIND/NAME, such as torchvision/resnet50, "
                    f"got {self.encoder!r}"
                )
            one_of("features.encoder", kind, ("torchvision", "timm", "efficientnet_lite"))


@dataclass
class TrainBenchmark:
    """suite=train. Each hidden size with the batch size in the same place; `steps` a repeat;
    `memory` also measures the peak of a whole epoch, which takes minutes."""

    images: int = 6000
    feature_dim: int = 4096
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 512])
    batch_sizes: list[int] = field(default_factory=lambda: [100, 128])
    backends: list[str] = field(default_factory=lambda: ["reference", "torch"])
    steps: int = 5
    memory: bool = True

    def __post_init__(self) -> None:
        for key in ("images", "feature_dim", "steps"):
            in_range(f"train.{key}", getattr(self, key), 1)
        for key in ("hidden_sizes", "batch_sizes"):
            in_range(f"train.{key}", min(getattr(self, key), default=0), 1)
        if len(self.hidden_sizes) != len(self.batch_sizes):
            raise ConfigError(
                f"train.hidden_sizes and train.batch_sizes go in pairs, got {self.hidden_sizes} "
                f"and {self.batch_sizes}"
            )
        for backend in self.backends:
            one_of("train.backends", backend, BACKENDS)


@dataclass
class BeamBenchmark:
    """suite=beam: how many images, how many at once, and the model's hidden size."""

    images: int = 1000
    beam_size: int = 5
    batch_size: int = 100
    hidden_size: int = 512

    def __post_init__(self) -> None:
        for key in ("images", "beam_size", "batch_size", "hidden_size"):
            in_range(f"beam.{key}", getattr(self, key), 1)


@dataclass
class MetricsBenchmark:
    """suite=metrics: images to score both ways, and at how many images memory is measured."""

    images: int = 1000
    memory_images: list[int] = field(default_factory=lambda: [1000, 10000, 40000])

    def __post_init__(self) -> None:
        in_range("metrics.images", self.images, 2)
        for count in self.memory_images:
            in_range("metrics.memory_images", count, 1)


@dataclass
class LstmBenchmark:
    """suite=lstm: the grid, and what is measured beside packed torch.nn.LSTM.

    lengths: flickr8k, equal or outlier (one long sequence among short ones). A backend that is not
    built is skipped aloud.
    """

    batch_sizes: list[int] = field(default_factory=lambda: [16, 64, 128])
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 512])
    dtypes: list[str] = field(default_factory=lambda: ["float32"])
    lengths: list[str] = field(default_factory=lambda: ["flickr8k"])
    backends: list[str] = field(default_factory=lambda: ["reference", "padded", "fused"])

    def __post_init__(self) -> None:
        for key in ("hidden_sizes", "batch_sizes"):
            in_range(f"lstm.{key}", min(getattr(self, key), default=0), 1)
        for key, choices in (
            ("dtypes", LSTM_DTYPES), ("lengths", DISTRIBUTIONS), ("backends", LSTM_BACKENDS)
        ):  # fmt: skip
            for value in getattr(self, key):
                one_of(f"lstm.{key}", value, choices)
