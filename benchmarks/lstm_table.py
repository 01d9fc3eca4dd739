"""The record of suite=lstm on the terminal: one line a side and cell, then what was required."""

from __future__ import annotations

from typing import Any

from benchmarks.lstm_sides import BACKWARD, BOTH, FORWARD, PEER
from benchmarks.record import aligned, format_head, format_requirements

HEAD = (
    "side", "forward", "backward", "both", "(spread)", "tokens/s", f"x {PEER}", "of floor", "peak"
)  # fmt: skip
NOTE = (
    f"medians; times in ms; x {PEER}: times as fast as packed torch.nn.LSTM; of floor: share of\n"
    "the floor's time; these and tokens/s of both, forward and backward; peak: MB held at most"
)


def format_lstm(record: dict[str, Any]) -> str:
    """Two tables: every side of every cell, and the requirements."""
    lines = [format_head(record), NOTE]
    skipped = record["settings"]["skipped"]
    lines += [f"{side} is skipped: {reason}" for side, reason in skipped.items()]
    cells: dict[str, dict[str, dict[tuple[str, str], dict[str, Any]]]] = {}
    for one in record["figures"]:
        cell = ", ".join(f"{name} {value}" for name, value in one["axes"].items())
        sides = cells.setdefault(cell, {})
        sides.setdefault(one["side"], {})[one["what"], one["unit"]] = one
    rows: list[tuple[str, ...]] = [HEAD]
    for cell, sides in cells.items():
        rows += [("",) * len(HEAD), (cell, *("",) * (len(HEAD) - 1))]
        rows += [(f"  {side}", *_row(found)) for side, found in sides.items()]
    lines += ["", *aligned(rows, left=[0]), "", *format_requirements(record)]
    return "\n".join(lines)


def _row(found: dict[tuple[str, str], dict[str, Any]]) -> tuple[str, ...]:
    both = found[BOTH, "ms"]
    return (
        *(_median(found, what, "ms") for what in (FORWARD, BACKWARD, BOTH)),
        f"{both['min']:.4g} to {both['max']:.4g}",
        _median(found, BOTH, "tokens/s", ",.0f"),
        _median(found, f"{BOTH}, speed to {PEER}", "times", ".2f"),
        _median(found, f"{BOTH}, share of the floor", "times", ".2f"),
        _median(found, "peak memory", "MB", ".1f"),
    )


def _median(
    found: dict[tuple[str, str], dict[str, Any]], what: str, unit: str, form: str = ".4g"
) -> str:
    one = found.get((what, unit))
    return "" if one is None else format(one["median"], form)
