"""Distributions as inline SVG: bars of one or two runs side by side, with axes and medians."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from captioner.evaluation.corpus import Floats
from captioner.evaluation.html import element, text

# Pixels: the whole, and of it the frame in which the bars stand; a line of the legend.
_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _BASE, _TOP, _LINE = 34, 326, 162, 8, 13
_BINS = 20


def histogram(
    title: str, series: Mapping[str, Sequence[float] | Floats], *, of: str, whole: bool = False
) -> str:
    """An SVG of the share of values, in percent `of` all, that fall into each bin; `whole` gives
    each whole number its own.

    Series with nothing in them are left out; without any there is no plot ("").
    """
    filled = {name: np.asarray(values, float) for name, values in series.items() if len(values)}
    if not filled:
        return ""
    everything = np.concatenate(list(filled.values()))
    low, high = float(everything.min()), float(everything.max())
    if whole:
        edges = np.arange(np.floor(low) - 0.5, np.ceil(high) + 1)
    else:
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    shares = {n: 100 * np.histogram(v, edges)[0] / len(v) for n, v in filled.items()}
    marks = ticks(0, max(float(share.max()) for share in shares.values()), 3)
    top = _TOP + _LINE * len(filled)  # of the frame, below the legend
    parts = [*_vertical_axis(marks, top), *_horizontal_axis(edges, whole=whole)]
    for number, (name, share) in enumerate(shares.items()):
        parts += _bars(share / marks[-1], number, len(shares), name, edges, top=top)
    for number, (name, values) in enumerate(filled.items()):
        label = f"{name}: median {_short(np.median(values))}, mean {_short(values.mean())}"
        place = {"x": _RIGHT, "y": _TOP + _LINE * number, "text_anchor": "end"}
        parts.append(text("text", label, class_=f"series{number}", **place))
    label = f"{title}, percent of {of}"
    svg = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)
    caption = element("figcaption", text("b", title), " ", text("small", f"% of {of}"))
    return element("figure", caption, svg) + "\n"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from `low` or below to `high` or above, about `count` steps apart: an axis."""
    span = high - low if high > low else 1.0
    size = 10.0 ** math.floor(math.log10(span / count))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= span / count)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(step * at, 10) for at in range(first, last + 1)]


def _vertical_axis(marks: Sequence[float], top: float) -> Iterator[str]:
    for mark in marks:
        y = _BASE - (_BASE - top) * mark / marks[-1]
        yield element("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}")
        yield text("text", _short(mark), x=_LEFT - 5, y=f"{y + 3.5:.1f}", text_anchor="end")


def _horizontal_axis(edges: np.ndarray, *, whole: bool) -> Iterator[str]:
    """Ticks at round numbers that lie within the bins."""
    low, high = float(edges[0]), float(edges[-1])
    yield element("line", x1=_LEFT, x2=_RIGHT, y1=_BASE, y2=_BASE)
    for mark in ticks(low, high, 5):
        if low <= mark <= high and (not whole or mark == round(mark)):
            x = _LEFT + (_RIGHT - _LEFT) * (mark - low) / (high - low)
            place = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": _BASE, "y2": _BASE + 4}
            yield element("line", **place)
            yield text("text", _short(mark), x=f"{x:.1f}", y=_BASE + 15, text_anchor="middle")


def _bars(
    heights: np.ndarray, number: int, count: int, name: str, edges: np.ndarray, *, top: float
) -> Iterator[str]:
    """The bars of series `number` of `count`; heights are shares of the frame's."""
    step = (_RIGHT - _LEFT) / len(heights)
    for at, height in enumerate(heights):
        tall = float(height) * (_BASE - top)
        yield element(
            "rect",
            text("title", f"{name}, {_short(edges[at])} to {_short(edges[at + 1])}"),
            class_=f"series{number}",
            x=f"{_LEFT + (at + number / count) * step:.1f}",
            y=f"{_BASE - tall:.1f}",
            width=f"{step / count * 0.9:.1f}",
            height=f"{tall:.1f}",
        )


def _short(value: float) -> str:
    """Four digits; what rounds to nothing is 0."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if abs(value) >= 0.01 else "0"
