"""Rank the runs below a folder: a table, and a page with parallel coordinates."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("leaderboard")
