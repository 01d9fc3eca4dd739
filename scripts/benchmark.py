"""Measure speed and memory, side by side: `benchmark.py suite=epoch out=epoch.json`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of what is installed

from benchmarks.command import BenchmarkConfig, format_suite, run_benchmark  # noqa: E402
from captioner.commands.cli import run_command  # noqa: E402
from captioner.config import register_command  # noqa: E402


def main(config: BenchmarkConfig) -> None:
    """Print what was measured and what was required."""
    print(format_suite(run_benchmark(config)))


if __name__ == "__main__":
    register_command("benchmark", BenchmarkConfig)
    run_command(main, __file__)
