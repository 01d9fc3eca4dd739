"""What leaderboard.py does."""

from pathlib import Path

from captioner import config as schema
from captioner.files import atomic_write, write_json
from captioner.leaderboard.gather import gather
from captioner.leaderboard.page import write_leaderboard
from captioner.leaderboard.table import as_csv, as_records, format_boards, make_boards, summary_json


def leaderboard(config: schema.LeaderboardConfig) -> str:
    """Write the page, and `out` where it is given; return the table for the terminal."""
    gathered = gather(config.folders)
    if not gathered.runs:
        where = ", ".join(config.folders)
        return "\n".join([f"no runs in {where}", *(f"note: {note}" for note in gathered.notes)])
    boards = make_boards(gathered.runs)
    page = config.page or Path(config.folders[0]) / "leaderboard.html"
    write_leaderboard(page, boards, gathered.notes)
    if config.out is not None and config.out.endswith(".json"):
        write_json(config.out, summary_json(boards, gathered))
    elif config.out is not None:
        with atomic_write(config.out, "w") as handle:
            handle.write(as_csv(as_records(boards)))
    return format_boards(boards, gathered.notes)
