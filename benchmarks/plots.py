"""Images of records: suite=lstm, a panel a hidden size; suite=scale, time and memory by size."""

from pathlib import Path
from typing import Any

from benchmarks.lstm_implementations import BASELINE, BOTH
from benchmarks.scale import AXES, QUANTITIES
from captioner.errors import ConfigError
from captioner.files import atomic_write

RATIO = f"{BOTH}, speed to {BASELINE}"
LABELS = ("images, five captions each", "captions a batch", "words", "hidden size")  # of AXES


def import_pyplot() -> Any:
    """matplotlib.pyplot; ConfigError where it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        why = "plot= draws with matplotlib, which is not installed: pip install matplotlib"
        raise ConfigError(f"{why}, or leave plot= out") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def plot_lstm(record: dict[str, Any], path: Path | str) -> None:
    """Draw speeds to packed nn.LSTM: a row a type and distribution, a column a hidden size."""
    figures = [one for one in record["figures"] if one["what"] == RATIO]
    if not figures:
        raise ConfigError(f"there is nothing to draw to {path}: only {BASELINE} was measured")
    kinds = list(dict.fromkeys((x["axes"]["dtype"], x["axes"]["lengths"]) for x in figures))
    hidden_sizes = sorted({one["axes"]["H"] for one in figures})
    size = (1.5 + 3.2 * len(hidden_sizes), 1.2 + 2.8 * len(kinds))
    image, panels = import_pyplot().subplots(
        len(kinds), len(hidden_sizes), squeeze=False, figsize=size
    )
    for line, (dtype, lengths) in zip(panels, kinds, strict=True):
        for panel, hidden in zip(line, hidden_sizes, strict=True):
            axes = {"dtype": dtype, "lengths": lengths, "H": hidden}
            _draw(panel, [one for one in figures if axes.items() <= one["axes"].items()], "B")
            panel.axhline(1.0, color="black", linewidth=1)
            panel.set_title(f"{dtype}, {lengths}, H = {hidden}", fontsize=9)
            panel.set(xlabel="sequences a batch", ylabel="times as fast")
            panel.set_xscale("log", base=2)
    panels[0][0].legend(fontsize=7)
    machine = record["machine"]
    where = machine["device"] if machine["device"] != "cpu" else f"{machine['threads']} CPU threads"
    _save(image, f"Forward and backward, {where}, beside packed torch.nn.LSTM", path)


def plot_scale(record: dict[str, Any], path: Path | str) -> None:
    """Draw above an epoch or a step, below the process's memory, over each size from 0 on."""
    image, rows = import_pyplot().subplots(2, len(AXES), figsize=(15, 6.5))
    for column, (axis, label) in enumerate(zip(AXES, LABELS, strict=True)):
        for row, what in enumerate(QUANTITIES[axis]):
            points = [f for f in record["figures"] if axis in f["axes"] and f["what"] == what]
            panel = rows[row][column]
            _draw(panel, points, axis)
            panel.set(xlabel=label, ylabel=f"{what}, {points[0]['unit']}")
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
    machine, torch_version = record["machine"], record["versions"]["torch"]
    title = f"{machine['cpu']}, {machine['threads']} threads, PyTorch {torch_version}"
    _save(image, f"{title}, {record['date'][:10]}", path)


def _draw(panel: Any, figures: list[dict[str, Any]], axis: str) -> None:
    """A line an implementation: medians over an axis, with bars from smallest to largest."""
    for name in dict.fromkeys(one["implementation"] for one in figures):
        own = [one for one in figures if one["implementation"] == name]
        own.sort(key=lambda one: int(one["axes"][axis]))
        y = [one["median"] for one in own]
        bars = [[abs(one[end] - one["median"]) for one in own] for end in ("min", "max")]
        x = [one["axes"][axis] for one in own]
        panel.errorbar(x, y, yerr=bars, marker="o", markersize=5, capsize=2, label=name)
    panel.grid(alpha=0.3)


def _save(image: Any, title: str, path: Path | str) -> None:
    image.suptitle(title, fontsize=11)
    image.set_layout_engine("constrained")
    with atomic_write(path) as handle:
        image.savefig(handle, dpi=150, format=Path(path).suffix[1:] or "png")
    import_pyplot().close(image)
