"""scripts/benchmark.py: its configuration, and from there to a suite, its tables and its record."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING

from benchmarks.attention import AttentionBenchmark, attention_suite
from benchmarks.beam import BeamBenchmark, beam_suite
from benchmarks.epoch import EpochBenchmark, ReplicasBenchmark, epoch_suite, replicas_suite
from benchmarks.features import FeaturesBenchmark, features_suite
from benchmarks.kinds import KindsBenchmark, kinds_suite
from benchmarks.lstm import SHOWN, LstmBenchmark, lstm_suite
from benchmarks.metrics import MetricsBenchmark, metrics_suite
from benchmarks.plots import import_pyplot, plot_lstm, plot_scale
from benchmarks.scale import ScaleBenchmark, scale_suite
from benchmarks.suite import (
    Run,
    SuiteResult,
    describe_machine,
    format_record,
    make_record,
    write_record,
)
from benchmarks.windows import WindowsBenchmark, windows_suite
from captioner.build.components import pick_device
from captioner.config import OutputConfig, RunConfig
from captioner.config.ranges import COUNT, OUTPUT, PATH, SEED, THREADS, Choice, setting
from captioner.errors import ConfigError

SUITES: dict[str, Callable[[Any, Run], SuiteResult]] = {
    "features": features_suite,
    "epoch": epoch_suite,
    "replicas": replicas_suite,
    "scale": scale_suite,
    "beam": beam_suite,
    "attention": attention_suite,
    "lstm": lstm_suite,
    "windows": windows_suite,
    "kinds": kinds_suite,
    "metrics": metrics_suite,
}


@dataclass
class BenchmarkConfig(RunConfig, OutputConfig):
    """scripts/benchmark.py: one suite, its implementations measured in turn `repeats` times.

    data_root: Flickr8k's folder; null draws its likeness. out: the JSON record. plot: an image of
    suite=lstm or suite=scale, such as lstm.png.
    """

    suite: str = setting(MISSING, Choice(tuple(SUITES)))
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


def run_benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Run the suite and return its record, which is also written to `out` and drawn to `plot`."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.plot is not None:
        import_pyplot()  # before minutes of measuring, not after
    device = pick_device(config.device)
    machine = describe_machine(device)
    run = Run(repeats=config.repeats, device=device, seed=config.seed, data_root=config.data_root)
    result = SUITES[config.suite](getattr(config, config.suite), run)
    record = make_record(config.suite, result, machine=machine)
    if config.out is not None:
        write_record(config.out, record)
    if config.plot is not None:
        (plot_lstm if config.suite == "lstm" else plot_scale)(record, config.plot)
    return record


def format_suite(record: dict[str, Any]) -> str:
    """The record as tables for the terminal."""
    return format_record(record, SHOWN if record["suite"] == "lstm" else ())
