"""Measure speed and memory, side by side: `benchmark.py suite=epoch out=epoch.json`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is no part of what is installed

from benchmarks.config import BenchmarkConfig
from captioner.commands.cli import run_command
from captioner.commands.table import Command
from captioner.config import register_command

if __name__ == "__main__":
    register_command("benchmark", BenchmarkConfig)
    about = "Measure speed and memory, side by side"
    run_command("benchmark", Command(about, "benchmarks.command:report"))
