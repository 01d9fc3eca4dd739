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
from captioner.config import OutputConfig, RunConfig
from captioner.config.ranges import COUNT, OUTPUT, PATH, SEED, THREADS, Choice, setting
from captioner.errors import ConfigError

SUITES = (
    *("features", "epoch", "replicas", "scale", "beam", "attention", "lstm", "windows", "kinds"),
    "metrics",
)


@dataclass
class BenchmarkConfig(RunConfig, OutputConfig):
    """scripts/benchmark.py: one suite, its implementations measured in turn `repeats` times.

    data_root: Flickr8k's folder; null draws its likeness. out: the JSON record. plot: an image of
    suite=lstm or suite=scale, such as lstm.png.
    """

    suite: str = setting(MISSING, Choice(SUITES))
    threads: int | None = setting(2, THREADS)
    repeats: int = setting(7, COUNT)
    seed: int = setting(0, SEED)
    data_root: str | None = setting(None, PATH)
    out: str | None = setting(None, OUTPUT)
    plot: str | None = setting(None, OUTPUT)
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
        if self.plot is not None and self.suite not in ("lstm", "scale"):
            raise ConfigError(f"plot draws suite=lstm and suite=scale, got suite={self.suite}")
