"""What a suite found, as a table for the terminal and as a record for a file."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Spread
from captioner.version import __version__

Axes = dict[str, int | str]
PACKAGES = ("torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Figure:
    """One measured quantity of one side; `axes` says for which sizes, `unit` is of the values."""

    what: str
    side: str
    unit: str
    spread: Spread
    axes: Axes = field(default_factory=dict)


@dataclass(frozen=True)
class Requirement:
    """What the median must reach, at least or at most."""

    what: str
    unit: str
    spread: Spread
    at_least: float | None = None
    at_most: float | None = None
    axes: Axes = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the median lies within the bounds."""
        value = self.spread.median
        enough = self.at_least is None or value >= self.at_least
        return enough and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class SuiteResult:
    """All that a suite found, and `settings`: what it ran on."""

    settings: dict[str, Any]
    figures: list[Figure]
    requirements: list[Requirement]


def make_record(suite: str, result: SuiteResult, *, machine: dict[str, Any]) -> dict[str, Any]:
    """The JSON record: where, when, with which versions and command, and every figure."""
    return {
        "suite": suite,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": versions(),
        "command": shlex.join(["python", *sys.argv]),
        "settings": result.settings,
        **measured(result.figures, result.requirements),
    }


def measured(
    figures: Sequence[Figure], requirements: Sequence[Requirement]
) -> dict[str, list[dict[str, Any]]]:
    """A record's `figures` and `requirements`, as JSON has them."""
    return {
        "figures": [{**_common(one), "side": one.side} for one in figures],
        "requirements": [
            {**_common(one), "at_least": one.at_least, "at_most": one.at_most, "met": one.met}
            for one in requirements
        ],
    }


def _common(one: Figure | Requirement) -> dict[str, Any]:
    spread = one.spread
    return {
        "what": one.what,
        "axes": one.axes,
        "unit": one.unit,
        "median": spread.median,
        "min": spread.low,
        "max": spread.high,
        "values": list(spread.values),
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, processor, cores, threads, and how busy it is now: asked before the suite runs."""
    usable = getattr(os, "sched_getaffinity", None)
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_before": round(load[0], 2) if load else None,
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of this package, Python, PyTorch, CUDA, and of the packages a suite may use."""
    found = {
        "captioner": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def format_record(record: dict[str, Any]) -> str:
    """The record as two tables: what was measured, and what was required."""
    lines = [format_head(record), "", *format_figures(record), "", *format_requirements(record)]
    return "\n".join(lines)


def format_figures(record: dict[str, Any]) -> list[str]:
    """The lines of the first table."""
    found = [("measured", "sizes", "side", "median", "min", "max", "unit")]
    for one in record["figures"]:
        found.append((one["what"], _sizes(one), one["side"], *_numbers(one), one["unit"]))
    return aligned(found)


def format_head(record: dict[str, Any]) -> str:
    """Which suite ran, on what."""
    machine = record["machine"]
    return (
        f"suite {record['suite']}: {machine['device']}, {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['threads']} threads, "
        f"torch {record['versions']['torch']}"
    )


def format_requirements(record: dict[str, Any]) -> list[str]:
    """The lines of the second table."""
    required = [("required", "sizes", "", "median", "min", "max", "unit")]
    for one in record["requirements"]:
        verdict = f"{_bounds(one)}: {'met' if one['met'] else 'NOT MET'}"
        required.append((one["what"], _sizes(one), verdict, *_numbers(one), one["unit"]))
    return aligned(required)


def _sizes(one: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in one["axes"].items())


def _numbers(one: dict[str, Any]) -> tuple[str, str, str]:
    low, middle, high = (f"{one[key]:,.4g}" for key in ("min", "median", "max"))
    return middle, low, high


def _bounds(one: dict[str, Any]) -> str:
    bounds = [
        f"{word} {one[key]:g}"
        for key, word in (("at_least", "at least"), ("at_most", "at most"))
        if one[key] is not None
    ]
    return " and ".join(bounds)


def aligned(rows: Sequence[tuple[str, ...]], left: Sequence[int] = (0, 1, 2, 6)) -> list[str]:
    """Lines with even columns: those at the places `left` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
