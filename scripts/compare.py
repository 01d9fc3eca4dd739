"""Compare scored runs: two in pairs with tests and the images farthest apart, more in a table."""

from __future__ import annotations

import sys
from pathlib import Path

from captioner.cli import run_command
from captioner.config import CompareConfig
from captioner.scoring import compare_command


def main(config: CompareConfig) -> None:
    """Print the table."""
    print(compare_command(config))


if __name__ == "__main__":
    # Runs may stand by themselves: compare.py a/scores b/scores samples=10000
    runs = [part for part in sys.argv[1:] if "=" not in part and not part.startswith("-")]
    others = [part for part in sys.argv[1:] if part not in runs]
    if runs:
        quoted = ",".join(f"'{run}'" for run in runs)
        sys.argv[1:] = [*others, f"runs=[{quoted}]"]
    run_command(main, name="compare", configs=Path(__file__).parents[1] / "configs")
