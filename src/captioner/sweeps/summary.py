"""What a sweep says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.leaderboard.gather import gather
from captioner.leaderboard.table import format_boards, make_boards
from captioner.runs.outcome import Outcome


class SweepFailed(CaptionerError):
    """Some runs of a sweep failed; the others came to their end."""

    def __init__(self, failed: Mapping[Path, Outcome], runs: int) -> None:
        lines = [f"  {folder.name}: {outcome.reason}" for folder, outcome in failed.items()]
        super().__init__("\n".join([f"{len(failed)} of {runs} runs failed", *lines]))


def summary(folder: Path) -> str:
    """The leaderboard of all runs in the sweep's folder, those of earlier commands among them."""
    gathered = gather([folder])
    return format_boards(make_boards(gathered.runs), gathered.notes)
