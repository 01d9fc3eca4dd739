"""Measure speed and memory, side by side: `benchmark.py suite=epoch out=epoch.json`."""

from __future__ import annotations

from pathlib import Path

from captioner.benchmarks.command import format_suite, run_benchmark
from captioner.commands.cli import run_command
from captioner.config import BenchmarkConfig


def main(config: BenchmarkConfig) -> None:
    """Print what was measured and what was required."""
    print(format_suite(run_benchmark(config)))


if __name__ == "__main__":
    run_command(main, name="benchmark", configs=Path(__file__).parents[1] / "configs")
