"""A suite: its settings, and what it found as a table for the terminal and a record for a file."""

import datetime
import json
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Spread
from captioner.files import atomic_write
from captioner.version import __version__

Axes = dict[str, int | str]
Values = Spread | float
PACKAGES = ("torchvision", "timm", "numpy", "pillow")
REDUCED = "repeats are reduced to median, min and max, four or more to quartiles q1 and q3 too"
LINE = 400  # characters of a record's value that stand on one line


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a suite is to measure; data_root: Flickr8k's folder, None draws captions like its own."""

    repeats: int
    device: torch.device
    seed: int = 0
    data_root: str | None = None


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """CUDA's matrix products of float32 as TF32, or exact: cuDNN's round by default."""
    parts: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn]
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


@dataclass(frozen=True)
class Figure:
    """A quantity of one implementation for the sizes `axes`, and bounds of its median."""

    what: str
    implementation: str
    unit: str
    spread: Spread
    axes: Axes = field(default_factory=dict)
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the median lies within the bounds."""
        value = self.spread.median
        enough = self.at_least is None or value >= self.at_least
        return enough and (self.at_most is None or value <= self.at_most)

    def as_json(self, *shown: str) -> dict[str, Any]:
        """An entry of a record: what it is, the attributes `shown`, and its values reduced."""
        named = {name: getattr(self, name) for name in ("what", "axes", "unit", *shown)}
        return {**named, **reduce(self.spread.values)}


@dataclass(frozen=True)
class SuiteResult:
    """All that a suite found, and `settings`: what it ran on."""

    settings: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    requirements: list[Figure] = field(default_factory=list)

    def add(
        self, what: str, implementation: str, unit: str, values: Values, axes: Axes | None = None
    ) -> None:
        """One figure more."""
        self.figures.append(Figure(what, implementation, unit, _spread(values), axes or {}))

    def require(self, what: str, unit: str, values: Values, **bounds: Any) -> None:
        """One requirement more; bounds: Figure's `at_least`, `at_most` and `axes`."""
        self.requirements.append(Figure(what, "", unit, _spread(values), **bounds))

    def as_json(self) -> dict[str, Any]:
        """A record's `figures` and `requirements`."""
        required = [one.as_json("at_least", "at_most", "met") for one in self.requirements]
        measured = [one.as_json("implementation") for one in self.figures]
        return {"figures": measured, "requirements": required}


def _spread(values: Values) -> Spread:
    return values if isinstance(values, Spread) else Spread((float(values),))


def reduce(values: Sequence[float]) -> dict[str, Any]:
    """How many values there are and how they spread: see REDUCED."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    if len(values) > 3:
        found["q1"], _, found["q3"] = statistics.quantiles(values, n=4, method="inclusive")
    return {"repeats": len(values), **{name: float(f"{v:.6g}") for name, v in found.items()}}


def make_record(suite: str, result: SuiteResult, *, machine: dict[str, Any]) -> dict[str, Any]:
    """The JSON record: where, when, with which versions and command, and every figure."""
    return {
        "suite": suite,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": versions(),
        "command": shlex.join(["python", *sys.argv]),
        "spread": REDUCED,
        "settings": result.settings,
        **result.as_json(),
    }


def write_record(path: Path | str, record: Mapping[str, Any]) -> None:
    """Write JSON for people too: a figure a line."""
    with atomic_write(path, "w") as handle:
        handle.write(_lines(record) + "\n")


def _lines(value: Any, indent: str = "") -> str:
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (indent and len(text) <= LINE) or not value:
        return text
    inner = indent + " "
    if isinstance(value, list):
        parts, (begin, end) = [_lines(one, inner) for one in value], "[]"
    else:
        named = ((json.dumps(name, ensure_ascii=False), one) for name, one in value.items())
        parts, (begin, end) = [f"{name}: {_lines(one, inner)}" for name, one in named], "{}"
    return begin + ",".join(f"\n{inner}{part}" for part in parts) + f"\n{indent}{end}"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, processor, cores, threads, and how busy it is now: asked before the suite runs."""
    usable = getattr(os, "sched_getaffinity", None)
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"^model name\s*:(.*)", info.read_text() if info.is_file() else "", re.M)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu[1].strip() if cpu else platform.processor() or platform.machine(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_before": round(load[0], 2) if load else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of this package, Python, PyTorch, CUDA, and of the packages a suite may use."""
    found = {"captioner": __version__, "python": platform.python_version()}
    cuda = {} if torch.version.cuda is None else {"cuda": torch.version.cuda}
    found |= {"torch": torch.__version__, **cuda}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def format_record(record: dict[str, Any], shown: Sequence[str] = ()) -> str:
    """Which suite ran, on what, what was left out, and the two tables."""
    machine = record["machine"]
    head = (
        f"suite {record['suite']}: {machine['device']}, {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['threads']} threads, torch {record['versions']['torch']}"
    )
    skipped = record["settings"].get("skipped", {}).items()
    absent = [f"{name} is skipped: {why}" for name, why in skipped]
    return "\n".join([head, *absent, "", *format_tables(record, shown)])


def format_tables(part: Mapping[str, Any], shown: Sequence[str] = ()) -> list[str]:
    """Lines of both tables: what was measured, all or what is `shown`, and what was required."""
    numbers = ("median", "min", "max", "unit")
    measured: list[tuple[str, ...]] = [("measured", "sizes", "implementation", *numbers)]
    for one in part["figures"]:
        if not shown or one["what"] in shown:
            measured.append(_row(one, one["implementation"]))
    required: list[tuple[str, ...]] = [("required", "sizes", "", *numbers)]
    for one in part["requirements"]:
        named = (("at_least", "at least"), ("at_most", "at most"))
        bounds = [f"{word} {one[key]:g}" for key, word in named if one[key] is not None]
        met = "met" if one["met"] else "NOT MET"
        required.append(_row(one, f"{' and '.join(bounds)}: {met}"))
    return [*_aligned(measured), "", *_aligned(required)]


def _row(one: dict[str, Any], middle: str) -> tuple[str, ...]:
    sizes = ", ".join(f"{name} {value}" for name, value in one["axes"].items())
    numbers = (f"{one[key]:,.4g}" for key in ("median", "min", "max"))
    return one["what"], sizes, middle, *numbers, one["unit"]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with even columns: words to the left, the numbers (columns 3 to 5) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    turned = ["<", "<", "<", ">", ">", ">", "<"]
    layout = "  ".join(f"{{:{to}{wide}}}" for to, wide in zip(turned, widths, strict=True))
    return [layout.format(*row).rstrip() for row in rows]
