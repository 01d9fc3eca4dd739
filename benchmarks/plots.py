"""Images of records: suite=lstm, a panel a hidden size; suite=scale, time and memory by size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.lstm_implementations import BASELINE, BOTH
from benchmarks.scale import AXES, QUANTITIES
from captioner.errors import ConfigError
from captioner.files import atomic_write

RATIO = f"{BOTH}, speed to {BASELINE}"
MARKS = "osD^vP"
LABELS = {
    "images": "images, five captions each",
    "batch_size": "captions a batch",
    "vocabulary": "words",
    "hidden_size": "hidden size",
}


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
    """Draw how many times as fast as packed torch.nn.LSTM each is, forward and backward.

    A row of panels for each type and distribution of lengths; bars span smallest to largest. The
    ending of `path` says the format.
    """
    pyplot = import_pyplot()
    figures = [one for one in record["figures"] if one["what"] == RATIO]
    rows = list(dict.fromkeys((x["axes"]["dtype"], x["axes"]["lengths"]) for x in figures))
    hidden_sizes = sorted({one["axes"]["H"] for one in figures})
    names = list(dict.fromkeys(one["implementation"] for one in figures))
    if not figures:
        raise ConfigError(f"there is nothing to draw to {path}: only {BASELINE} was measured")
    size = (1.5 + 3.2 * len(hidden_sizes), 1.2 + 2.8 * len(rows))
    image, panels = pyplot.subplots(
        *(len(rows), len(hidden_sizes)), squeeze=False, sharey="row", sharex=True, figsize=size
    )
    for line, (dtype, lengths) in zip(panels, rows, strict=True):
        line[0].set_ylabel(f"{dtype}, {lengths}\ntimes as fast")
        for panel, hidden in zip(line, hidden_sizes, strict=True):
            axes = {"dtype": dtype, "lengths": lengths, "H": hidden}
            chosen = [one for one in figures if axes.items() <= one["axes"].items()]
            for number, name in enumerate(names):
                own = [one for one in chosen if one["implementation"] == name]
                _errorbars(panel, own, "B", color=f"C{number}", marker=MARKS[number % len(MARKS)])
            batches = sorted({int(one["axes"]["B"]) for one in chosen})
            panel.axhline(1.0, color="black", linewidth=1)
            panel.set_title(f"H = {hidden}")
            panel.set_xscale("log", base=2)
            panel.set_xticks(batches, [str(batch) for batch in batches])
    for panel in panels[-1]:
        panel.set_xlabel("sequences a batch")
    handles = [pyplot.Line2D([], [], color=f"C{k}", marker=MARKS[k % 6]) for k in range(len(names))]
    image.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
    machine = record["machine"]
    where = machine["device"] if machine["device"] != "cpu" else f"{machine['threads']} CPU threads"
    title = f"Forward and backward, {where}:\nspeed beside packed torch.nn.LSTM"
    _save(pyplot, image, title, path)


def plot_scale(record: dict[str, Any], path: Path | str) -> None:
    """Draw above an epoch or a step, below the process's memory, over each size from 0 on."""
    pyplot = import_pyplot()
    image, rows = pyplot.subplots(2, len(AXES), figsize=(15, 6.5))
    for column, axis in enumerate(AXES):
        for row, what in enumerate(QUANTITIES[axis]):
            points = [f for f in record["figures"] if axis in f["axes"] and f["what"] == what]
            panel = rows[row][column]
            _errorbars(panel, points, axis, color="C0", marker="o")
            panel.set_xlabel(LABELS[axis])
            panel.set_ylabel(f"{what}, {points[0]['unit']}")
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
    machine, torch_version = record["machine"], record["versions"]["torch"]
    title = f"{machine['cpu']}, {machine['threads']} threads, PyTorch {torch_version}"
    _save(pyplot, image, f"{title}, {record['date'][:10]}", path)


def _errorbars(panel: Any, figures: list[dict[str, Any]], axis: str, **style: str) -> None:
    """Medians over an axis, with bars from the smallest to the largest value."""
    figures = sorted(figures, key=lambda one: int(one["axes"][axis]))
    below = [one["median"] - one["min"] for one in figures]
    above = [one["max"] - one["median"] for one in figures]
    x = [one["axes"][axis] for one in figures]
    y = [one["median"] for one in figures]
    panel.errorbar(x, y, yerr=(below, above), markersize=5, capsize=2, linewidth=1.5, **style)
    panel.grid(alpha=0.3)


def _save(pyplot: Any, image: Any, title: str, path: Path | str) -> None:
    image.suptitle(title, fontsize=11)
    image.set_layout_engine("constrained")
    with atomic_write(path) as handle:
        image.savefig(handle, dpi=150, format=Path(path).suffix[1:] or "png")
    pyplot.close(image)
