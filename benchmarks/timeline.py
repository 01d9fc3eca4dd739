"""What a device does over time: a profiler's trace, and a picture of it that opens in any browser.

A row of the picture is a stream (on a CPU a thread), a bar is a kernel (an operator), and below it
stands how long each kind of them took in all.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.epoch_floor import synchronize
from captioner.evaluation.html import element, page, table, text

ON_GPU, ON_CPU = ("kernel", "gpu_memcpy", "gpu_memset"), ("cpu_op",)
WIDTH, ROW = 1600, 26  # pixels
LISTED = 40  # kinds of kernels in the table
STYLE = "body { max-width: none; margin: 20px; } svg { width: auto; }\n"


@dataclass(frozen=True)
class Bar:
    """Something that ran from `start` for `length` microseconds in a `row`."""

    name: str
    row: str
    start: float
    length: float


def take_trace(call: Callable[[], object], device: torch.device, path: Path) -> list[Bar]:
    """Run `call` under the profiler; what ran, in order. The trace goes to `path`, for Perfetto."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports missing GPUs on standard error
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    with profile(activities=activities) as taken:
        call()
        synchronize(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    taken.export_chrome_trace(str(path))
    wanted = ON_GPU if device.type == "cuda" else ON_CPU
    return read_bars(path, wanted)


def read_bars(path: Path, categories: Sequence[str]) -> list[Bar]:
    """A trace's complete events of these categories, by their start."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    bars = [
        Bar(event["name"], str(event["tid"]), float(event["ts"]), float(event["dur"]))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in categories
    ]
    return sorted(bars, key=lambda bar: bar.start)


def busy_microseconds(bars: Sequence[Bar]) -> float:
    """How long at least one of the bars, which are in order, was running."""
    busy, end = 0.0, float("-inf")
    for bar in bars:
        busy += max(0.0, bar.start + bar.length - max(end, bar.start))
        end = max(end, bar.start + bar.length)
    return busy


def draw_timeline(bars: Sequence[Bar], title: str) -> str:
    """The picture as an HTML page; `bars` are in order."""
    rows = {row: place for place, row in enumerate(sorted({bar.row for bar in bars}))}
    first = bars[0].start if bars else 0.0
    span = max((bar.start + bar.length for bar in bars), default=first) - first
    scale = WIDTH / span if span else 0.0
    busy = busy_microseconds(bars)
    share = busy / span if span else 0.0
    told = f"{span:.1f} us from first to last, {busy:.1f} us of them busy ({share:.0%}); "
    kinds = list(microseconds_by_kind(bars).items())[:LISTED]
    body = [
        text("p", f"{told}{len(bars)} bars. Point at a bar for its name."),
        element(
            "svg",
            *(_bar(bar, rows[bar.row], first, scale) for bar in bars),
            width=WIDTH,
            height=ROW * max(1, len(rows)),
        ),
        table(["", "in all"], [[kind, f"{total:.1f} us"] for kind, total in kinds]),
    ]
    return "".join(page(title, body, style=STYLE))


def microseconds_by_kind(bars: Sequence[Bar]) -> dict[str, float]:
    """How long the bars of each kind took in all, the longest first."""
    kinds: defaultdict[str, float] = defaultdict(float)
    for bar in bars:
        kinds[kind_of(bar.name)] += bar.length
    return dict(sorted(kinds.items(), key=lambda one: -one[1]))


def kind_of(name: str) -> str:
    """A kernel's name without its template's and its own arguments."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.sub(r"[<(].*", "", name).strip() or name


def _colour(name: str) -> str:
    """The same for the same kind, wherever it stands."""
    hue = sum(ord(letter) * (place + 7) for place, letter in enumerate(kind_of(name))) % 360
    return f"hsl({hue} 65% 55%)"


def _bar(bar: Bar, place: int, first: float, scale: float) -> str:
    x, width = (bar.start - first) * scale, max(0.3, bar.length * scale)
    return element(
        "rect",
        text("title", f"{bar.name}: {bar.length:.1f} us"),
        x=f"{x:.2f}",
        y=place * ROW + 2,
        width=f"{width:.2f}",
        height=ROW - 4,
        fill=_colour(bar.name),
    )
