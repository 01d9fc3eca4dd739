"""The leaderboard as one HTML page that stands alone; its look is that of the reports."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from captioner.files import atomic_write
from captioner.leaderboard.gather import Run
from captioner.leaderboard.parallel import parallel_coordinates
from captioner.leaderboard.table import (
    Board,
    best_line,
    duration,
    epochs,
    interval,
    number,
    value,
)


def write_page(path: Path | str, boards: Sequence[Board], notes: Sequence[str] = ()) -> None:
    """Write the page, whole or not at all; every text in it is escaped."""
    style = _resource("captioner.evaluation", "report.css")
    style += _resource("captioner.leaderboard", "leaderboard.css")
    script = _resource("captioner.leaderboard", "leaderboard.js")
    best = "".join(f"<p class='winner'>{escape(best_line(b))}</p>\n" for b in boards if b.best)
    left_out = "".join(f"<li>{escape(note)}</li>" for note in notes)
    with atomic_write(path, "w") as page:
        page.write(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>Leaderboard</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f"<h1>Leaderboard</h1>\n{best}"
        )
        page.writelines(_section(board) for board in boards)
        if notes:
            page.write(f"<h2>Left out</h2>\n<ul>{left_out}</ul>\n")
        page.write(f"<script>\n{script}</script>\n</body>\n</html>\n")


def plot_as_html(board: Board) -> str:
    """A board's parallel coordinates with their style, for a notebook."""
    style = _resource("captioner.evaluation", "report.css").splitlines()[0]
    style += _resource("captioner.leaderboard", "leaderboard.css").split("/* plot */")[1]
    return f"<style>\n{style}</style>\n{parallel_coordinates(board)}"


def _resource(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _section(board: Board) -> str:
    plot = parallel_coordinates(board)
    hint = "<p><small>Drag along an axis to keep the runs that pass there; click it to keep all. "
    hint += "Click a column's head to sort.</small></p>\n"
    return (
        f'<section>\n<h2>{escape(board.title)}</h2>\n<div class="scroll">{plot}</div>\n'
        f"{hint if plot else ''}{_table(board)}</section>\n"
    )


def _table(board: Board) -> str:
    heads = ["", board.metric, "95 %", "epoch", "time", "state"]
    heads += [*map(board.short, board.differing), "run"]
    top = "".join(
        f'<th scope="col"><button type="button">{escape(head)}</button></th>' for head in heads
    )
    rows = "".join(_row(number, run, board) for number, run in enumerate(board.runs))
    return (
        '<div class="scroll"><table class="runs">\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )


def _row(place: int, run: Run, board: Board) -> str:
    scored = run.score is not None
    state = run.state + (f": {run.reason}" if run.reason else "")
    cells = [
        _cell(str(place + 1) if scored else "", place),
        _cell(number(run.score), run.score),
        _cell(interval(run), run.interval.low if run.interval else None),
        _cell(epochs(run), run.best["epoch"] if run.best else None),
        _cell(duration(run.seconds) if scored else "", run.seconds if scored else None),
        f'<td class="{run.state}" data-sort="{escape(state)}">{escape(state)}</td>',
        *(_setting(run.settings.get(key, "")) for key in board.differing),
        f'<td class="folder" data-sort="{escape(str(run.folder))}">{escape(str(run.folder))}</td>',
    ]
    best = ' class="best"' if run is board.best else ""
    return f'<tr data-run="{place}"{best}>{"".join(cells)}</tr>\n'


def _cell(text: str, key: float | None) -> str:
    sort = "" if key is None else key
    return f'<td class="number" data-sort="{sort}">{escape(text)}</td>'


def _setting(setting: object) -> str:
    return f'<td class="number" data-sort="{escape(value(setting))}">{escape(value(setting))}</td>'
