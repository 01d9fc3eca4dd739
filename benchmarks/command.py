"""From the benchmark's configuration to a suite, its tables and its record."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.beam import beam_suite
from benchmarks.epoch import epoch_suite
from benchmarks.features import features_suite
from benchmarks.kinds import kinds_suite
from benchmarks.lstm import lstm_suite
from benchmarks.lstm_plot import import_pyplot, plot_lstm
from benchmarks.lstm_table import format_lstm
from benchmarks.metrics import metrics_suite
from benchmarks.record import (
    SuiteResult,
    describe_machine,
    format_record,
    make_record,
)
from benchmarks.replicas import replicas_suite
from benchmarks.scale import scale_suite
from benchmarks.scale_plot import plot_scale
from benchmarks.schema import BenchmarkConfig
from benchmarks.windows import windows_suite
from captioner.build.components import pick_device
from captioner.files import write_json


def run_benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Run the suite and return its record, which is also written to `out` and drawn to `plot`."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    if config.plot is not None:
        import_pyplot()  # before minutes of measuring, not after
    machine = describe_machine(device)
    record = make_record(config.suite, _run_suite(config, device), machine=machine)
    if config.out is not None:
        write_json(config.out, record)
    if config.plot is not None:
        (plot_lstm if config.suite == "lstm" else plot_scale)(record, config.plot)
    return record


def format_suite(record: dict[str, Any]) -> str:
    """The record as tables for the terminal."""
    return format_lstm(record) if record["suite"] == "lstm" else format_record(record)


def _run_suite(config: BenchmarkConfig, device: torch.device) -> SuiteResult:
    every: dict[str, Any] = {"repeats": config.repeats, "device": device, "seed": config.seed}
    on_data = {**every, "data_root": config.data_root}
    if config.suite == "features":
        return features_suite(**vars(config.features), **on_data)
    if config.suite == "epoch":
        return epoch_suite(**vars(config.epoch), **on_data)
    if config.suite == "replicas":
        return replicas_suite(**vars(config.replicas), **on_data)
    if config.suite == "scale":
        return scale_suite(**vars(config.scale), **on_data)
    if config.suite == "metrics":
        return metrics_suite(**vars(config.metrics), **on_data)
    if config.suite == "beam":
        return beam_suite(**vars(config.beam), **on_data)
    if config.suite == "windows":
        return windows_suite(**vars(config.windows), **every)
    if config.suite == "kinds":
        return kinds_suite(**vars(config.kinds))
    return lstm_suite(**vars(config.lstm), **on_data)
