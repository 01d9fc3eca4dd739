"""Typed settings of scripts/benchmark.py and of each suite."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from benchmarks.epoch_settings import CASES
from benchmarks.lengths import DISTRIBUTIONS
from captioner.checks import in_range, one_of, positive
from captioner.config import RunConfig
from captioner.errors import ConfigError
from captioner.ops import BACKENDS

SUITES = ("features", "epoch", "replicas", "scale", "beam", "lstm", "windows", "kinds", "metrics")
LSTM_DTYPES = ("float32", "tf32", "float64", "bfloat16", "float16")
LSTM_BACKENDS = ("reference", "torch", "padded", "fused", "plain", "persistent", "cluster")


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
class EpochBenchmark:
    """suite=epoch. cases: by name, of benchmarks/epoch_settings.py; `steps` a repeat; `compiled`
    adds torch.compile of the plain loop; `memory` also measures the peak of a whole run, which
    takes minutes."""

    images: int = 6000
    feature_dim: int = 4096
    cases: list[str] = field(default_factory=lambda: list(CASES))
    backends: list[str] = field(default_factory=lambda: ["auto"])
    compiled: bool = False
    steps: int = 10
    memory: bool = True

    def __post_init__(self) -> None:
        for key in ("images", "feature_dim", "steps"):
            in_range(f"epoch.{key}", getattr(self, key), 1)
        for case in self.cases:
            one_of("epoch.cases", case, tuple(CASES))
        for backend in self.backends:
            one_of("epoch.backends", backend, BACKENDS)


@dataclass
class ReplicasBenchmark:
    """suite=replicas: how many models, of which cases of suite=epoch, at which batch sizes."""

    replicas: int = 8
    images: int = 6000
    feature_dim: int = 1280
    cases: list[str] = field(default_factory=lambda: ["adam_256", "neuraltalk"])
    batch_sizes: list[int] = field(default_factory=lambda: [16, 32, 100])
    steps: int = 8

    def __post_init__(self) -> None:
        for key in ("replicas", "images", "feature_dim", "steps"):
            in_range(f"replicas.{key}", getattr(self, key), 1)
        in_range("replicas.batch_sizes", min(self.batch_sizes, default=0), 1)
        for case in self.cases:
            one_of("replicas.cases", case, tuple(CASES))


@dataclass
class ScaleBenchmark:
    """suite=scale: the values of each size, the others staying at LSTM 256, batch 100 and 6,000
    images; from an eighth of Flickr8k to as many images as COCO has."""

    images: list[int] = field(default_factory=lambda: [750, 1500, 3000, 6000, 24000, 113287])
    batch_sizes: list[int] = field(default_factory=lambda: [25, 50, 100, 200])
    vocabularies: list[int] = field(default_factory=lambda: [2560, 5120, 10240, 20480])
    hidden_sizes: list[int] = field(default_factory=lambda: [128, 256, 512, 768])
    feature_dim: int = 1280
    steps: int = 10

    def __post_init__(self) -> None:
        for key in ("images", "batch_sizes", "vocabularies", "hidden_sizes"):
            in_range(f"scale.{key}", min(getattr(self, key), default=0), 1)
        for key in ("feature_dim", "steps"):
            in_range(f"scale.{key}", getattr(self, key), 1)


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


@dataclass
class WindowsBenchmark:
    """suite=windows: streams, tokens a window, and the LSTM's sizes."""

    batch_sizes: list[int] = field(default_factory=lambda: [64])
    window: int = 64
    hidden_sizes: list[int] = field(default_factory=lambda: [512])
    num_layers: int = 2

    def __post_init__(self) -> None:
        for key in ("window", "num_layers"):
            in_range(f"windows.{key}", getattr(self, key), 1)
        for key in ("hidden_sizes", "batch_sizes"):
            in_range(f"windows.{key}", min(getattr(self, key), default=0), 1)


@dataclass
class KindsBenchmark:
    """suite=kinds: minutes of training each; path: tiny Shakespeare, null downloads it; folder:
    where the runs lie; hidden_size: the LSTM's, whose parameters all have."""

    path: str | None = None
    folder: str = "outputs/kinds"
    hidden_size: int = 256
    num_layers: int = 2
    minutes: float = 5.0
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    lrs: list[float] = field(default_factory=lambda: [1e-3, 2e-3, 4e-3])
    batch_size: int = 64
    window: int = 64
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for key in ("hidden_size", "num_layers", "batch_size", "window"):
            in_range(f"kinds.{key}", getattr(self, key), 1)
        positive("kinds.minutes", self.minutes)
        in_range("kinds.dropout", self.dropout, 0, 0.999)
        if not (self.seeds and self.lrs):
            raise ConfigError("kinds.seeds and kinds.lrs must name one or more each")


@dataclass
class BenchmarkConfig(RunConfig):
    """scripts/benchmark.py: one suite, its sides measured in turn `repeats` times.

    data_root: Flickr8k's folder, for its captions and pictures; null draws ones like them. out: the
    JSON record. plot: a picture of suite=lstm or suite=scale, such as lstm.png.
    """

    suite: str = MISSING
    threads: int | None = 2
    repeats: int = 7
    seed: int = 0
    data_root: str | None = None
    out: str | None = None
    plot: str | None = None
    features: FeaturesBenchmark = field(default_factory=FeaturesBenchmark)
    epoch: EpochBenchmark = field(default_factory=EpochBenchmark)
    replicas: ReplicasBenchmark = field(default_factory=ReplicasBenchmark)
    scale: ScaleBenchmark = field(default_factory=ScaleBenchmark)
    beam: BeamBenchmark = field(default_factory=BeamBenchmark)
    lstm: LstmBenchmark = field(default_factory=LstmBenchmark)
    windows: WindowsBenchmark = field(default_factory=WindowsBenchmark)
    kinds: KindsBenchmark = field(default_factory=KindsBenchmark)
    metrics: MetricsBenchmark = field(default_factory=MetricsBenchmark)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("suite", self.suite, SUITES)
        if self.plot is not None and self.suite not in ("lstm", "scale"):
            raise ConfigError(f"plot draws suite=lstm and suite=scale, got suite={self.suite}")
        in_range("repeats", self.repeats, 1)
        in_range("seed", self.seed, 0)
