"""What a device does over time: a profiler's trace, and how long each kernel took in it."""

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

from benchmarks.timing import synchronize

ON_GPU, ON_CPU = ("kernel", "gpu_memcpy", "gpu_memset"), ("cpu_op",)


@dataclass(frozen=True)
class Bar:
    """A kernel (on a CPU an operator) that ran from `start` for `length` microseconds."""

    name: str
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
    return read_bars(path, ON_GPU if device.type == "cuda" else ON_CPU)


def read_bars(path: Path, categories: Sequence[str]) -> list[Bar]:
    """A trace's complete events of these categories, by their start."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    bars = [
        Bar(event["name"], float(event["ts"]), float(event["dur"]))
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


def microseconds_by_kernel(bars: Sequence[Bar]) -> dict[str, float]:
    """How long the bars of each kernel took in all, the longest first."""
    kernels: defaultdict[str, float] = defaultdict(float)
    for bar in bars:
        kernels[kernel_of(bar.name)] += bar.length
    return dict(sorted(kernels.items(), key=lambda one: -one[1]))


def kernel_of(name: str) -> str:
    """A kernel's name without its template's and its own arguments."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.sub(r"[<(].*", "", name).strip() or name
