"""The record of suite=lstm as a picture: a panel a hidden size, each side's speed by batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.lstm_sides import BOTH, PEER
from captioner.errors import ConfigError
from captioner.files import atomic_write

RATIO = f"{BOTH}, speed to {PEER}"
MARKS = "osD^vP"


def import_pyplot() -> Any:
    """matplotlib.pyplot; ConfigError where it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ConfigError(
            "plot= draws with matplotlib, which is not installed: pip install matplotlib, "
            "or leave plot= out"
        ) from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def plot_lstm(record: dict[str, Any], path: Path | str) -> None:
    """Draw how many times as fast as packed torch.nn.LSTM each side is, forward and backward.

    A row of panels for each type and distribution of lengths; bars span smallest to largest. The
    ending of `path` says the format.
    """
    pyplot = import_pyplot()
    figures = [one for one in record["figures"] if one["what"] == RATIO]
    rows = list(dict.fromkeys((x["axes"]["dtype"], x["axes"]["lengths"]) for x in figures))
    hidden_sizes = sorted({one["axes"]["H"] for one in figures})
    sides = list(dict.fromkeys(one["side"] for one in figures))
    if not figures:
        raise ConfigError(f"there is nothing to draw to {path}: only {PEER} was measured")
    picture, panels = pyplot.subplots(
        len(rows), len(hidden_sizes), squeeze=False, sharey="row", sharex=True,
        figsize=(1.5 + 3.2 * len(hidden_sizes), 1.2 + 2.8 * len(rows)), layout="constrained",
    )  # fmt: skip
    for line, (dtype, lengths) in zip(panels, rows, strict=True):
        line[0].set_ylabel(f"{dtype}, {lengths}\ntimes as fast")
        for panel, hidden in zip(line, hidden_sizes, strict=True):
            axes = {"dtype": dtype, "lengths": lengths, "H": hidden}
            chosen = [one for one in figures if axes.items() <= one["axes"].items()]
            for number, side in enumerate(sides):
                _draw(panel, [one for one in chosen if one["side"] == side], number)
            panel.axhline(1.0, color="black", linewidth=1)
            panel.set_title(f"H = {hidden}")
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("sequences a batch")
    handles = [pyplot.Line2D([], [], color=f"C{k}", marker=MARKS[k % 6]) for k in range(len(sides))]
    picture.legend(handles, sides, loc="outside lower center", ncols=min(4, len(sides)))
    machine = record["machine"]
    where = machine["device"] if machine["device"] != "cpu" else f"{machine['threads']} CPU threads"
    picture.suptitle(
        f"Forward and backward, {where}:\nspeed beside packed torch.nn.LSTM", fontsize=11
    )
    with atomic_write(path) as handle:
        picture.savefig(handle, dpi=150, format=Path(path).suffix[1:] or "png")
    pyplot.close(picture)


def _draw(panel: Any, figures: list[dict[str, Any]], number: int) -> None:
    """One side's line over the batch sizes of one panel."""
    figures = sorted(figures, key=lambda one: int(one["axes"]["B"]))
    batches = [int(one["axes"]["B"]) for one in figures]
    medians = [one["median"] for one in figures]
    spread = [
        [one["median"] - one["min"] for one in figures],
        [one["max"] - one["median"] for one in figures],
    ]
    panel.errorbar(
        batches, medians, yerr=spread, color=f"C{number}", marker=MARKS[number % len(MARKS)],
        markersize=5, capsize=2, linewidth=1.5,
    )  # fmt: skip
    panel.set_xscale("log", base=2)
    if batches:
        panel.set_xticks(batches, [str(batch) for batch in batches])
