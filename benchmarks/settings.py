"""The settings of each suite of scripts/benchmark.py.

What a setting may be stands here as a literal, so that a command line is read without torch; a test
compares it with the code it names.
"""

import importlib.util
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from captioner.checks import in_range, one_of, positive
from captioner.errors import ConfigError

CASES = ("adam_256", "adam_512", "neuraltalk", "neon", "nic")
ATTENTION_MODELS = (
    "layered_attention lstm",
    "layered_attention concat",
    "adaptive_attention",
    "show_attend_tell",
    "up_down",
)
READERS = ("pil", "torchvision")
BACKENDS = ("auto", "reference", "torch", "fused", "plain", "persistent", "cluster")
DTYPES = ("float32", "tf32", "float64", "bfloat16", "float16")
LENGTHS = ("flickr8k", "equal", "outlier")
LSTM_BACKENDS = ("reference", "torch", "padded", "fused", "plain", "persistent", "cluster")
LITE0, FALLBACK = "efficientnet_lite/lite0", "torchvision/mobilenet_v2"


def setting(default: Any, **rules: Any) -> Any:
    """A field of SuiteSettings. rules: choices, a tuple; or least, of a number."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=rules)
    return field(default=default, metadata=rules)


@dataclass
class SuiteSettings:
    """Checks every field by its rules: integers are at least 1 unless `least` is given, other
    numbers positive; a list's elements are checked one by one, and one of numbers is not empty."""

    suite: ClassVar[str]

    def __post_init__(self) -> None:
        for item in fields(self):
            value, key = getattr(self, item.name), f"{self.suite}.{item.name}"
            if value == [] and "choices" not in item.metadata:
                raise ConfigError(f"{key} must name one or more")
            for one in value if isinstance(value, list) else [value]:
                if "choices" in item.metadata:
                    one_of(key, one, item.metadata["choices"])
                elif isinstance(one, float) and "least" not in item.metadata:
                    positive(key, one)
                elif isinstance(one, int | float) and not isinstance(one, bool):
                    in_range(key, one, item.metadata.get("least", 1))


@dataclass
class FeaturesBenchmark(SuiteSettings):
    """suite=features. encoder: KIND/NAME as in the group encoder, or auto; output: as there, a grid
    is cached in half precision; picture_side: of drawn images, in pixels."""

    suite: ClassVar[str] = "features"
    encoder: str = "auto"
    output: str = setting("pooled", choices=("pooled", "grid"))
    readers: list[str] = setting(["pil"], choices=READERS)
    pictures: int = 512
    picture_side: int = setting(224, least=32)
    batch_size: int = 32
    workers: int = setting(2, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, _, name = self.chosen.partition("/")
        if not name:
            wanted = "auto or KIND/NAME, such as torchvision/resnet50"
            raise ConfigError(f"features.encoder must be {wanted}, got {self.encoder!r}")
        one_of("features.encoder", kind, ("torchvision", "timm", "efficientnet_lite"))

    @property
    def chosen(self) -> str:
        """The encoder as KIND/NAME."""
        if self.encoder != "auto":
            return self.encoder
        return FALLBACK if importlib.util.find_spec("timm") is None else LITE0


@dataclass
class TrainingBenchmark(SuiteSettings):
    """What suite=epoch and suite=replicas share."""

    images: int = 6000
    feature_dim: int = 1280
    cases: list[str] = setting([*CASES], choices=CASES)
    steps: int = 10


@dataclass
class EpochBenchmark(TrainingBenchmark):
    """suite=epoch: cases of benchmarks/training.py; `memory`: the peak of a whole run too."""

    suite: ClassVar[str] = "epoch"
    feature_dim: int = 4096
    backends: list[str] = setting(["auto"], choices=BACKENDS)
    memory: bool = True


@dataclass
class ReplicasBenchmark(TrainingBenchmark):
    """suite=replicas: how many models, of which cases of suite=epoch or layered_attention, at which
    batch sizes; of at most `processes` models a process each at the same time too.

    grid_images: of layered_attention, whose batches are of images. folder: keeps what was measured;
    started again, the suite measures the rest.
    """

    suite: ClassVar[str] = "replicas"
    replicas: list[int] = setting([1, 2, 4, 8, 16, 32])
    processes: int = 8
    cases: list[str] = setting(["adam_256", "adam_512"], choices=(*CASES, "layered_attention"))
    batch_sizes: list[int] = setting([16, 32, 64, 128])
    steps: int = 8
    grid_images: int = 200
    folder: str | None = None


@dataclass
class ScaleBenchmark(SuiteSettings):
    """suite=scale: the values of each size, the others staying at BASE and BASE_IMAGES."""

    suite: ClassVar[str] = "scale"
    images: list[int] = setting([750, 1500, 3000, 6000, 24000, 113287])
    batch_sizes: list[int] = setting([25, 50, 100, 200])
    vocabularies: list[int] = setting([2560, 5120, 10240, 20480])
    hidden_sizes: list[int] = setting([128, 256, 512, 768])
    feature_dim: int = 1280
    steps: int = 10


@dataclass
class BeamBenchmark(SuiteSettings):
    """suite=beam: how many images, how many at once, and the model's hidden size."""

    suite: ClassVar[str] = "beam"
    images: int = 1000
    beam_size: int = 5
    batch_size: int = 100
    hidden_size: int = 512


@dataclass
class AttentionBenchmark(SuiteSettings):
    """suite=attention. images: drawn to train on, and captioned by beam search; batch_size: in
    images; regions: of a grid; steps: in a repeat."""

    suite: ClassVar[str] = "attention"
    images: int = 1000
    regions: int = 81
    feature_dim: int = 1280
    hidden_size: int = 512
    batch_size: int = 16
    models: list[str] = setting([*ATTENTION_MODELS], choices=ATTENTION_MODELS)
    steps: int = 3


@dataclass
class LstmBenchmark(SuiteSettings):
    """suite=lstm: the grid, and what is measured beside packed torch.nn.LSTM.

    lengths: flickr8k, equal or outlier (one long sequence among short ones). A backend that is not
    built is skipped aloud.
    """

    suite: ClassVar[str] = "lstm"
    batch_sizes: list[int] = setting([16, 64, 128])
    hidden_sizes: list[int] = setting([256, 512])
    dtypes: list[str] = setting(["float32"], choices=DTYPES)
    lengths: list[str] = setting(["flickr8k"], choices=LENGTHS)
    backends: list[str] = setting(["reference", "padded", "fused"], choices=LSTM_BACKENDS)


@dataclass
class WindowsBenchmark(SuiteSettings):
    """suite=windows: streams, tokens a window, and the LSTM's sizes."""

    suite: ClassVar[str] = "windows"
    batch_sizes: list[int] = setting([64])
    window: int = 64
    hidden_sizes: list[int] = setting([512])
    num_layers: int = 2


@dataclass
class KindsBenchmark(SuiteSettings):
    """suite=kinds: minutes of training each; path: tiny Shakespeare, null downloads it."""

    suite: ClassVar[str] = "kinds"
    path: str | None = None
    folder: str = "outputs/kinds"
    hidden_size: int = 256
    num_layers: int = 2
    minutes: float = 5.0
    seeds: list[int] = setting([0, 1, 2], least=0)
    lrs: list[float] = setting([1e-3, 2e-3, 4e-3])
    batch_size: int = 64
    window: int = 64
    dropout: float = setting(0.2, least=0)


@dataclass
class MetricsBenchmark(SuiteSettings):
    """suite=metrics: images to score both ways, and at how many images memory is measured."""

    suite: ClassVar[str] = "metrics"
    images: int = setting(1000, least=2)
    memory_images: list[int] = setting([1000, 10000, 40000])
