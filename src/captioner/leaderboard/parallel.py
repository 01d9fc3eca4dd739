"""Parallel coordinates as inline SVG: a vertical axis for each setting, a line for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from captioner.leaderboard.table import Board, duration, number, value

_HEIGHT, _TOP, _BOTTOM, _GAP, _SIDE = 330, 40, 300, 150, 80  # pixels
_WIDE = 10.0  # from this ratio of largest to smallest on, an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """A column of the plot: each run's place from 0, at the bottom, to 1, and what ticks say.

    A run without a value has the place None.
    """

    name: str
    places: Sequence[float | None]
    ticks: Sequence[tuple[float, str]]


def axes(board: Board) -> list[Axis]:
    """The settings in which the runs differ, then time and score; better scores are higher."""
    runs = [run for run in board.runs if run.score is not None]
    columns = [
        _axis(board.short(key), [run.settings.get(key) for run in runs]) for key in board.differing
    ]
    seconds = [run.seconds for run in runs]
    scores = [run.score for run in runs]
    columns.append(_axis("time", seconds, write=duration))
    score = _axis(board.metric, scores, linear=True)
    if board.lower_is_better:
        score = _upside_down(score)
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

    distinct = sorted(set(numbers))
    shown = distinct if len(distinct) <= 6 else [low, *_between(low, high, scale is math.log), high]
    write = write or (number if linear or any(isinstance(v, float) for v in numbers) else str)
    return Axis(
        name, [place(one) for one in numbers], _apart([(place(v), write(v)) for v in shown])
    )


def _between(low: float, high: float, logarithmic: bool) -> list[float]:
    """Three values that part an axis in four."""
    if logarithmic:
        return [low * (high / low) ** (step / 4) for step in (1, 2, 3)]
    return [low + (high - low) * step / 4 for step in (1, 2, 3)]


def _apart(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Ticks without those whose text would stand on the one before."""
    kept: list[tuple[float, str]] = []
    for place, text in ticks:
        if not kept or place - kept[-1][0] > 0.05:
            kept.append((place, text))
    return kept


def _categories(name: str, values: Sequence[Any]) -> Axis:
    texts = [value(one) for one in values]
    order = sorted(set(texts))
    places = {
        text: at / (len(order) - 1) if len(order) > 1 else 0.5 for at, text in enumerate(order)
    }
    return Axis(name, [places[t] for t in texts], [(places[t], t[:18]) for t in order])


def _upside_down(axis: Axis) -> Axis:
    places = [None if place is None else 1 - place for place in axis.places]
    return Axis(axis.name, places, [(1 - place, text) for place, text in axis.ticks])


def parallel_coordinates(board: Board) -> str:
    """The SVG of a board; "" while fewer than two of its runs have a score.

    A line's colour is its score: from blue, the worst, to orange, the best, which is thick.
    """
    columns = axes(board) if sum(run.score is not None for run in board.runs) > 1 else []
    if not columns:
        return ""
    width = 2 * _SIDE + _GAP * (len(columns) - 1)
    title = escape(f"parallel coordinates of {board.title}")
    lines = [_line(number, columns) for number in range(len(columns[0].places))]
    return (
        f'<svg class="parallel" viewBox="0 0 {width} {_HEIGHT}" style="max-width:{width}px" '
        f'role="img" aria-label="{title}">\n'
        + "".join(reversed(lines))  # the best on top
        + "".join(_drawn(at, axis) for at, axis in enumerate(columns))
        + "</svg>\n"
    )


def _line(run: int, columns: Sequence[Axis]) -> str:
    points = " ".join(
        f"{_SIDE + _GAP * at},{_y(axis.places[run]):.1f}" for at, axis in enumerate(columns)
    )
    places = ",".join(f"{axis.places[run]:.4f}" for axis in columns)
    share = columns[-1].places[run] or 0.0
    best = " best" if run == 0 else ""
    return (
        f'<polyline class="run{best}" data-run="{run}" data-places="{places}" points="{points}" '
        f'style="--share:{share:.3f}"/>\n'
    )


def _drawn(at: int, axis: Axis) -> str:
    x, name = _SIDE + _GAP * at, escape(axis.name)
    ticks = "".join(
        f'<text class="tick" x="{x + 6}" y="{_y(place) + 3:.1f}">{escape(text)}</text>'
        f'<line x1="{x - 3}" x2="{x + 3}" y1="{_y(place):.1f}" y2="{_y(place):.1f}"/>'
        for place, text in axis.ticks
    )
    return (
        f'<g class="axis" data-axis="{at}"><line x1="{x}" x2="{x}" y1="{_TOP}" y2="{_BOTTOM}"/>'
        f'<text class="name" x="{x}" y="{_TOP - 16}" text-anchor="middle">{name}</text>'
        f"{ticks}"
        f'<rect class="brush" x="{x - 8}" width="16" y="0" height="0"/>'
        f'<rect class="grip" x="{x - 14}" y="{_TOP - 6}" width="28" '
        f'height="{_BOTTOM - _TOP + 12}"/></g>\n'
    )


def _y(place: float | None) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * (place or 0.0)
