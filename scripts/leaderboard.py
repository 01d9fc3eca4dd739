"""Rank the runs below a folder: a table, and a page with parallel coordinates."""

from __future__ import annotations

from captioner.commands.cli import run_command
from captioner.config import LeaderboardConfig


def main(config: LeaderboardConfig) -> str:
    """Write the page, and give the table."""
    from captioner.commands.leaderboard import leaderboard

    return leaderboard(config)


if __name__ == "__main__":
    run_command(main, __file__, positional="folders")
