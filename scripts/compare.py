"""Compare scored runs: two in pairs with tests and the images farthest apart, more in a table."""

from __future__ import annotations

from pathlib import Path

from captioner.commands.cli import run_command
from captioner.commands.scoring import compare_command
from captioner.config import CompareConfig


def main(config: CompareConfig) -> None:
    """Print the table."""
    print(compare_command(config))


if __name__ == "__main__":
    configs = Path(__file__).parents[1] / "configs"
    run_command(main, name="compare", configs=configs, positional="runs")
