"""scripts/benchmark.py's configuration: a suite, and the settings of each."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from benchmarks.settings import (
    AttentionBenchmark,
    BeamBenchmark,
    EpochBenchmark,
    FeaturesBenchmark,
    KindsBenchmark,
    LstmBenchmark,
    MetricsBenchmark,
    ReplicasBenchmark,
    ScaleBenchmark,
    WindowsBenchmark,
)
from captioner.checks import in_range, one_of
from captioner.config import RunConfig
from captioner.errors import ConfigError

SUITES = (
    *("features", "epoch", "replicas", "scale", "beam", "attention", "lstm", "windows", "kinds"),
    "metrics",
)


@dataclass
class BenchmarkConfig(RunConfig):
    """scripts/benchmark.py: one suite, its implementations measured in turn `repeats` times.

    data_root: Flickr8k's folder; null draws its likeness. out: the JSON record. plot: an image of
    suite=lstm or suite=scale, such as lstm.png.
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
    attention: AttentionBenchmark = field(default_factory=AttentionBenchmark)
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
