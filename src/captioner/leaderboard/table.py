"""Runs ranked: a board for each metric and data set, as text, CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from captioner.leaderboard.gather import Gathered, Run
from captioner.progress import duration
from captioner.runs.folder import FREE

# Settings that differ between any two runs and decide no result.
_NOT_SHOWN = (*FREE, "name", "device")


class Cell(NamedTuple):
    """An entry of a board's table: its text, what it sorts by, its CSS class."""

    text: str
    key: object
    kind: str = "number"


@dataclass(frozen=True)
class Board:
    """Runs whose scores can be compared, best first, and the settings in which they differ."""

    metric: str
    data: str
    runs: Sequence[Run]
    differing: Sequence[str]

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller score wins."""
        return self.runs[0].lower_is_better

    @property
    def title(self) -> str:
        """Such as `BLEU-4 on scenes: 8 runs`."""
        count = f"{len(self.runs)} run{'s' if len(self.runs) != 1 else ''}"
        better = ", lower is better" if self.lower_is_better else ""
        return f"{self.metric} on {self.data}: {count}{better}"

    @property
    def best(self) -> Run | None:
        """The first run whose best checkpoint is there."""
        return next((run for run in self.runs if run.checkpoint is not None), None)

    @property
    def heads(self) -> list[str]:
        """The columns' names."""
        fixed = ["", self.metric, "95 %", "epoch", "time", "state"]
        return [*fixed, *map(self.short, self.differing), "run"]

    def cells(self, place: int) -> list[Cell]:
        """The row of a run, counted from 0."""
        run = self.runs[place]
        scored, low = run.score is not None, run.interval.low if run.interval else ""
        settings = [value(run.settings.get(key, "")) for key in self.differing]
        return [
            Cell(str(place + 1) if scored else "", place),
            Cell(number(run.score), run.score if scored else ""),
            Cell(interval(run), low),
            Cell(epochs(run), run.best["epoch"] if run.best else ""),
            Cell(duration(run.seconds) if scored else "", run.seconds if scored else ""),
            Cell(state(run), run.state, run.state),
            *(Cell(setting, setting) for setting in settings),
            Cell(str(run.folder), run.folder, "folder"),
        ]

    def short(self, key: str) -> str:
        """The last parts of a key, as few as tell it from the other columns."""
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(f".{other}".endswith(f".{name}") for other in self.differing) == 1:
                return name
        return key


def make_boards(runs: Sequence[Run]) -> list[Board]:
    """Boards by metric and data, each with its runs ranked; runs without a score come last."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.metric, run.data), []).append(run)
    boards = []
    for (metric, data), members in sorted(groups.items()):
        ranked = sorted(members, key=_rank)
        boards.append(Board(metric, data, ranked, _differing(ranked)))
    return boards


def _rank(run: Run) -> tuple[bool, float, str]:
    score = run.score or 0.0
    return run.score is None, score if run.lower_is_better else -score, str(run.folder)


def _differing(runs: Sequence[Run]) -> list[str]:
    """Keys whose values are not the same in all runs that have settings at all."""
    known = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    return [
        key
        for key in keys
        if key not in _NOT_SHOWN and len({repr(settings.get(key)) for settings in known}) > 1
    ]


# -- as text ------------------------------------------------------------------------------------


def format_boards(boards: Sequence[Board], notes: Sequence[str] = ()) -> str:
    """Tables, then failures and notes, on the last lines each board's best checkpoint."""
    parts = []
    for board in boards:
        rows = [[cell.text for cell in board.cells(place)] for place in range(len(board.runs))]
        parts.append(f"{board.title}\n{_aligned([board.heads, *rows])}")
    failed = [run for board in boards for run in board.runs if run.reason]
    tail = [f"failed: {run.folder}: {run.reason}" for run in failed]
    tail += [f"note: {note}" for note in notes]
    tail += [best_line(board) for board in boards if board.best is not None]
    return "\n\n".join([*parts, "\n".join(tail or ["no run has a checkpoint yet"])])


def best_line(board: Board) -> str:
    """The path of a board's best checkpoint."""
    assert board.best is not None and board.best.score is not None
    score = number(board.best.score)
    return f"best {board.metric} on {board.data}: {score}, {board.best.checkpoint}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def number(score: float | None) -> str:
    """A score with four digits, or nothing; BLEU's stand-in for "no match at all" is 0."""
    return "" if score is None else f"{score if abs(score) > 1e-6 else 0:.4g}"


def interval(run: Run) -> str:
    """The interval and the evaluation that it is from; "none" without one."""
    one = run.interval
    return "none" if one is None else f"{one.low:.2f} to {one.high:.2f} ({one.source})"


def epochs(run: Run) -> str:
    """The best epoch, how many have ended and, where more are planned, how many in all."""
    if run.best is None:
        return ""
    ended, planned = len(run.history), run.settings.get("trainer.epochs")
    left = f", {planned} planned" if run.state != "finished" and planned != ended else ""
    return f"{run.best['epoch']:.0f} of {ended}{left}"


def state(run: Run) -> str:
    """How it stands, and how many were trained together with it, itself among them."""
    return f"{run.state}, {len(run.together) + 1} together" if run.together else run.state


def value(setting: Any) -> str:
    """A setting as a command line has it, real numbers with four digits."""
    if isinstance(setting, float):
        return f"{setting:.4g}"
    return setting if isinstance(setting, str) else json.dumps(setting)


# -- for other programs -------------------------------------------------------------------------


def as_records(boards: Sequence[Board]) -> list[dict[str, Any]]:
    """A flat record of each run, in the boards' order; the settings that differ by their keys."""
    return [
        {
            "metric": board.metric,
            "data": board.data,
            "place": place if run.score is not None else None,
            "score": run.score,
            "low": run.interval.low if run.interval else None,
            "high": run.interval.high if run.interval else None,
            "epoch": run.best["epoch"] if run.best else None,
            "seconds": run.seconds,
            "state": run.state,
            "reason": run.reason,
            **({"together": " ".join(run.together)} if run.together else {}),
            "folder": str(run.folder),
            "checkpoint": str(run.checkpoint) if run.checkpoint else None,
            **{key: run.settings.get(key) for key in board.differing},
        }
        for board in boards
        for place, run in enumerate(board.runs, 1)
    ]


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV, a column for every key that one of them has."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def summary_json(boards: Sequence[Board], gathered: Gathered) -> dict[str, Any]:
    """Everything that the page shows, for other programs."""
    return {
        "runs": as_records(boards),
        "best": {
            f"{board.metric} on {board.data}": str(board.best.checkpoint)
            for board in boards
            if board.best is not None
        },
        "notes": gathered.notes,
    }
