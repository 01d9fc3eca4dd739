"""Distributions as inline SVG: bars of one or two runs side by side, with their medians."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from captioner.evaluation.html import element, text
from captioner.evaluation.ngrams import Floats

_WIDTH, _HEIGHT, _BASE, _TOP = 320, 150, 120, 12  # pixels
_BINS = 20


def histogram(
    title: str, series: Mapping[str, Sequence[float] | Floats], *, whole: bool = False
) -> str:
    """An SVG of how many values fall into each bin; `whole` gives each whole number its own.

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
    shares = {n: np.histogram(v, edges)[0] / len(v) for n, v in filled.items()}
    tallest = max(float(share.max()) for share in shares.values()) or 1.0
    first, last = (edges[0] + 0.5, edges[-1] - 0.5) if whole else (edges[0], edges[-1])
    y, middle = _BASE + 14, _WIDTH / 2
    parts: list[str] = []
    for number, (name, share) in enumerate(shares.items()):
        parts += _bars(share / tallest, number, len(shares), name, edges)
    parts += [
        element("line", x1=0, x2=_WIDTH, y1=_BASE, y2=_BASE),
        text("text", _short(first), x=0, y=y),
        text("text", _short(last), x=_WIDTH, y=y, text_anchor="end"),
    ]
    for number, (name, values) in enumerate(filled.items()):
        label = f"{name}: median {_short(np.median(values))}, mean {_short(values.mean())}"
        place = {"x": middle, "y": _TOP * (number + 1), "text_anchor": "middle"}
        parts.append(text("text", label, class_=f"series{number}", **place))
    svg = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)
    return element("figure", text("figcaption", title), svg) + "\n"


def _bars(
    heights: np.ndarray, number: int, count: int, name: str, edges: np.ndarray
) -> Iterator[str]:
    """The bars of series `number` of `count`; heights are shares of the tallest bar."""
    step = _WIDTH / len(heights)
    full = _BASE - _TOP * (count + 1)
    for at, height in enumerate(heights):
        yield element(
            "rect",
            text("title", f"{name}, {edges[at]:.4g} to {edges[at + 1]:.4g}"),
            class_=f"series{number}",
            x=f"{(at + number / count) * step:.1f}",
            y=f"{_BASE - height * full:.1f}",
            width=f"{step / count * 0.9:.1f}",
            height=f"{height * full:.1f}",
        )


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 0.01 else "0"
