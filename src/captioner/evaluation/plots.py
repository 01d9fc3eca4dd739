"""Distributions as inline SVG: bars of one or two runs side by side, with their medians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from captioner.evaluation.ngrams import Floats

_WIDTH, _HEIGHT, _BASE, _TOP = 320, 150, 120, 12  # pixels


def histogram(
    title: str,
    series: Mapping[str, Sequence[float] | Floats],
    *,
    bins: int = 20,
    whole: bool = False,
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
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = {n: np.histogram(v, edges)[0] / len(v) for n, v in filled.items()}
    tallest = max(float(share.max()) for share in shares.values()) or 1.0
    parts = [
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">'
    ]
    for number, (name, share) in enumerate(shares.items()):
        parts += _bars(share / tallest, number, len(shares), name, edges)
    first, last = (edges[0] + 0.5, edges[-1] - 0.5) if whole else (edges[0], edges[-1])
    parts.append(
        f'<line x1="0" x2="{_WIDTH}" y1="{_BASE}" y2="{_BASE}"/>'
        f'<text x="0" y="{_BASE + 14}">{_short(first)}</text>'
        f'<text x="{_WIDTH}" y="{_BASE + 14}" text-anchor="end">{_short(last)}</text>'
    )
    for number, (name, values) in enumerate(filled.items()):
        label = f"{name}: median {_short(np.median(values))}, mean {_short(values.mean())}"
        parts.append(
            f'<text class="series{number}" x="{_WIDTH / 2}" y="{_TOP * (number + 1)}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    return "".join(parts) + "</svg></figure>\n"


def _bars(heights: np.ndarray, number: int, sides: int, name: str, edges: np.ndarray) -> list[str]:
    step = _WIDTH / len(heights)
    room = _BASE - _TOP * (sides + 1)
    return [
        f'<rect class="series{number}" x="{(at + number / sides) * step:.1f}" '
        f'y="{_BASE - height * room:.1f}" width="{step / sides * 0.9:.1f}" '
        f'height="{height * room:.1f}"><title>{escape(name)}, {edges[at]:.4g} to '
        f"{edges[at + 1]:.4g}</title></rect>"
        for at, height in enumerate(heights)
    ]


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 0.01 else "0"
