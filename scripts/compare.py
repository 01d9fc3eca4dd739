"""Compare scored runs: two in pairs with tests and the images farthest apart, more in a table."""

from __future__ import annotations

from captioner.commands.cli import run_command
from captioner.config import CompareConfig


def main(config: CompareConfig) -> str:
    """The table of differences."""
    from captioner.commands.compare import compare

    return compare(config)


if __name__ == "__main__":
    run_command(main, __file__, positional="runs")
