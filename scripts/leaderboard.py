"""Rank the runs below a folder: a table, and a page with parallel coordinates."""

from __future__ import annotations

from pathlib import Path

from captioner.commands.cli import run_command
from captioner.commands.leaderboard import leaderboard
from captioner.config import LeaderboardConfig


def main(config: LeaderboardConfig) -> None:
    """Print the table; its last line names the best checkpoint."""
    print(leaderboard(config))


if __name__ == "__main__":
    configs = Path(__file__).parents[1] / "configs"
    run_command(main, name="leaderboard", configs=configs, positional="folders")
