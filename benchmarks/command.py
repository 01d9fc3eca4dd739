"""What scripts/benchmark.py does: from its configuration to a suite, its tables, its record."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.attention import attention_suite
from benchmarks.beam import beam_suite
from benchmarks.config import BenchmarkConfig
from benchmarks.epoch import epoch_suite
from benchmarks.features import features_suite
from benchmarks.kinds import kinds_suite
from benchmarks.lstm import SHOWN, lstm_suite
from benchmarks.metrics import metrics_suite
from benchmarks.plots import import_pyplot, plot_lstm, plot_scale
from benchmarks.replicas import replicas_suite
from benchmarks.scale import scale_suite
from benchmarks.suite import (
    Run,
    SuiteResult,
    describe_machine,
    format_record,
    make_record,
    write_record,
)
from benchmarks.windows import windows_suite
from captioner.build.components import pick_device

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


def report(config: BenchmarkConfig) -> str:
    """What was measured and what was required, for the terminal."""
    return format_suite(run_benchmark(config))


def format_suite(record: dict[str, Any]) -> str:
    """The record as tables for the terminal."""
    return format_record(record, SHOWN if record["suite"] == "lstm" else ())
