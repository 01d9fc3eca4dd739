"""The picture of suite=scale: time and memory over each size, from 0 on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.lstm_plot import import_pyplot
from benchmarks.scale import AXES

LABELS = {
    "images": "images, five captions each",
    "batch_size": "captions a batch",
    "vocabulary": "words",
    "hidden_size": "hidden size",
}


def plot_scale(record: dict[str, Any], path: Path | str) -> None:
    """Draw the record to `path`: above a pass or a step, below the process's memory."""
    plt = import_pyplot()
    figure, rows = plt.subplots(2, len(AXES), figsize=(15, 6.5), layout="constrained")
    for column, axis in enumerate(AXES):
        for row, what in enumerate(("a pass" if axis == "images" else "a step",
                                    "memory of the process")):  # fmt: skip
            _draw(rows[row][column], record, axis, what)
    figure.suptitle(
        f"{record['machine']['cpu']}, {record['machine']['threads']} threads, "
        f"PyTorch {record['versions']['torch']}, {record['date'][:10]}"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(plot: Any, record: dict[str, Any], axis: str, what: str) -> None:
    points = [f for f in record["figures"] if f["side"] == axis and f["what"] == what]
    x = [f["axes"][axis] for f in points]
    y = [f["median"] for f in points]
    below = [f["median"] - f["min"] for f in points]
    above = [f["max"] - f["median"] for f in points]
    plot.errorbar(x, y, yerr=(below, above), marker="o", capsize=3)
    plot.set_xlabel(LABELS[axis])
    plot.set_ylabel(f"{what}, {points[0]['unit']}")
    plot.set_xlim(left=0)
    plot.set_ylim(bottom=0)
    plot.grid(alpha=0.3)
