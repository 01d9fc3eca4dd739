"""Parallel coordinates as inline SVG: a vertical axis for each setting, a line for each run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from captioner.evaluation.html import element, text
from captioner.leaderboard.table import Board, number, value
from captioner.progress import duration

_HEIGHT, _TOP, _BOTTOM, _GAP, _MARGIN = 330, 40, 300, 150, 80  # pixels
_WIDE = 10.0  # from this ratio of largest to smallest on, an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """A column of the plot: each run's place from 0, at the bottom, to 1, and the ticks' labels."""

    name: str
    places: Sequence[float]
    ticks: Sequence[tuple[float, str]]


def axes(board: Board) -> list[Axis]:
    """The settings in which the runs differ, then time and score; better scores are higher."""
    runs = [run for run in board.runs if run.score is not None]
    columns = [
        _axis(board.short(key), [run.settings.get(key) for run in runs]) for key in board.differing
    ]
    columns.append(_axis("time", [run.seconds for run in runs], write=duration))
    score = _axis(board.metric, [run.score for run in runs], linear=True)
    if board.lower_is_better:
        ticks = [(1 - place, label) for place, label in score.ticks]
        score = Axis(score.name, [1 - place for place in score.places], ticks)
    return [*columns, score]


def _axis(name: str, values: Sequence[Any], *, linear: bool = False, write: Any = None) -> Axis:
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return _categories(name, values)
    low, high = min(numbers), max(numbers)
    scale = math.log if not linear and low > 0 and high >= _WIDE * low else float
    first, last = scale(low), scale(high)

    def place(one: float) -> float:
        return (scale(one) - first) / (last - first) if last > first else 0.5

    shown = sorted(set(numbers))
    if len(shown) > 6:
        spaced = np.geomspace if scale is math.log else np.linspace
        shown = [low, *spaced(low, high, 5)[1:-1].tolist(), high]
    write = write or (
        number if linear or any(isinstance(v, float) for v in numbers) else "{:g}".format
    )
    ticks: list[tuple[float, str]] = []
    for one in shown:
        if not ticks or place(one) - ticks[-1][0] > 0.05:  # else the labels would overlap
            ticks.append((place(one), write(one)))
    return Axis(name, [place(one) for one in numbers], ticks)


def _categories(name: str, values: Sequence[Any]) -> Axis:
    labels = [value(one) for one in values]
    order = sorted(set(labels))
    last = len(order) - 1
    places = {label: at / last if last else 0.5 for at, label in enumerate(order)}
    return Axis(name, [places[one] for one in labels], [(places[o], o[:18]) for o in order])


def parallel_coordinates(board: Board) -> str:
    """The SVG of a board; "" while fewer than two of its runs have a score.

    A line's colour is its score: from blue, the worst, to orange, the best, which is thick.
    """
    columns = axes(board) if sum(run.score is not None for run in board.runs) > 1 else []
    if not columns:
        return ""
    width = 2 * _MARGIN + _GAP * (len(columns) - 1)
    lines = [_line(number, columns) for number in range(len(columns[0].places))]
    return element(
        "svg",
        *reversed(lines),  # the best on top
        *(_drawn(at, axis) for at, axis in enumerate(columns)),
        class_="parallel",
        viewBox=f"0 0 {width} {_HEIGHT}",
        style=f"max-width:{width}px",
        role="img",
        aria_label=f"parallel coordinates of {board.title}",
    )


def _line(run: int, columns: Sequence[Axis]) -> str:
    places = [axis.places[run] for axis in columns]
    points = [f"{_MARGIN + _GAP * at},{_y(place):.1f}" for at, place in enumerate(places)]
    return element(
        "polyline",
        class_="run best" if run == 0 else "run",
        data_run=run,
        data_places=",".join(f"{place:.4f}" for place in places),
        points=" ".join(points),
        style=f"--share:{places[-1]:.3f}",
    )


def _drawn(at: int, axis: Axis) -> str:
    x = _MARGIN + _GAP * at
    ticks = [
        text("text", label, class_="tick", x=x + 6, y=f"{_y(place) + 3:.1f}")
        + element("line", x1=x - 3, x2=x + 3, y1=f"{_y(place):.1f}", y2=f"{_y(place):.1f}")
        for place, label in axis.ticks
    ]
    height = _BOTTOM - _TOP + 12
    return element(
        "g",
        element("line", x1=x, x2=x, y1=_TOP, y2=_BOTTOM),
        text("text", axis.name, class_="name", x=x, y=_TOP - 16, text_anchor="middle"),
        *ticks,
        element("rect", class_="brush", x=x - 8, width=16, y=0, height=0),
        element("rect", class_="grip", x=x - 14, y=_TOP - 6, width=28, height=height),
        class_="axis",
        data_axis=at,
    )


def _y(place: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * place
