"""The leaderboard as one self-contained HTML page, in the style of the reports."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from captioner.evaluation.html import element, listing, resource, text, write_page
from captioner.leaderboard.parallel import parallel_coordinates
from captioner.leaderboard.table import Board, best_line

_HINT = (
    "<p><small>Drag along an axis to keep the runs that pass there; click it to keep all. "
    "Click a column's head to sort.</small></p>\n"
)


def write_leaderboard(path: Path | str, boards: Sequence[Board], notes: Sequence[str] = ()) -> None:
    """Write the page, whole or not at all."""
    style = resource(__package__, "leaderboard.css")
    script = resource(__package__, "leaderboard.js")
    write_page(path, "Leaderboard", _body(boards, notes), style=style, script=script)


def plot_as_html(board: Board) -> str:
    """A board's parallel coordinates with their style, for a notebook."""
    style = resource("captioner.evaluation", "page.css").split("body {")[0]
    style += resource(__package__, "leaderboard.css").split("/* plot */")[1]
    return f"<style>\n{style}</style>\n{parallel_coordinates(board)}"


def _body(boards: Sequence[Board], notes: Sequence[str]) -> Iterator[str]:
    for board in boards:
        if board.best:
            yield text("p", best_line(board), class_="winner") + "\n"
    for board in boards:
        plot = parallel_coordinates(board)
        parts = element("div", plot, class_="scroll") + "\n" + (_HINT if plot else "")
        yield element("section", text("h2", board.title), parts, _table(board)) + "\n"
    if notes:
        yield "<h2>Left out</h2>\n" + listing("ul", map(escape, notes))


def _table(board: Board) -> str:
    """Unlike html.table its heads are buttons, and its cells have a value to sort by."""
    heads = (element("th", text("button", one, type="button"), scope="col") for one in board.heads)
    rows = (_row(board, place) for place in range(len(board.runs)))
    head = element("thead", element("tr", *heads)) + "\n"
    table = element("table", head, element("tbody", *rows), class_="runs")
    return element("div", table, class_="scroll")


def _row(board: Board, place: int) -> str:
    run = board.runs[place]
    after = {"failed": f": {run.reason}"} if run.reason else {}
    cells = [
        text("td", cell.text + after.get(cell.kind, ""), class_=cell.kind, data_sort=cell.key)
        for cell in board.cells(place)
    ]
    best = "best" if run is board.best else None
    return element("tr", *cells, data_run=place, class_=best) + "\n"
