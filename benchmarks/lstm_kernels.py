"""How long a time step of the persistent LSTM kernels takes, and what is required of them.

Shapes: B sequences, T longest length, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.lstm_case import Case, Cell
from benchmarks.lstm_implementations import BASELINE, BOTH, PADDED, PERSISTENT, Layer
from benchmarks.record import SuiteResult
from benchmarks.timing import Spread, paired_ratio

CALLS = 20
KERNELS = {"forward": "forward_steps<", "backward": "backward_steps<"}
MOST = {"forward": 3.0, "backward": 4.0}  # microseconds of a step at B = 64
PROMISED = (64, 128, 256)  # batches, at H = 512 and captions' lengths


def add_step_times(
    result: SuiteResult, case: Case, layers: Mapping[str, Layer], cell: Cell
) -> None:
    """Microseconds of a time step of each persistent kernel: its whole time, by the profiler,
    through the number of steps. Nothing else is in it: no GEMM before or after, no launch."""
    for name in (name for name in PERSISTENT if name in layers):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(CALLS):
                layers[name].both()
            torch.cuda.synchronize()
        for what, taken in kernel_times(profiler.events(), len(case.batch_sizes)).items():
            result.add(f"{what}, a time step", name, "us", Spread(tuple(taken)), axes=cell.axes)


def kernel_times(events: Any, steps: int) -> dict[str, list[float]]:
    """Of each direction the microseconds a step of every call of its kernel; none where the
    profiler saw none."""
    taken = {
        what: [event.device_time_total / steps for event in events if kernel in event.name]
        for what, kernel in KERNELS.items()
    }
    return {what: times for what, times in taken.items() if times}


def require_of_kernels(result: SuiteResult, cell: Cell) -> None:
    """What the faster of the persistent algorithms must reach in this cell: twice packed nn.LSTM,
    no slower than padded cuDNN, and so much for a time step at B = 64."""
    sizes = (cell.lengths, cell.hidden_size)
    if sizes != ("flickr8k", 512) or cell.batch_size not in PROMISED:
        return
    found = {(one.what, one.unit, one.implementation): one.spread for one in result.figures}
    times = {name: found[BOTH, "ms", name] for name in PERSISTENT if (BOTH, "ms", name) in found}
    if not times:
        return
    best = min(times, key=lambda name: times[name].median)
    for other, least in ((BASELINE, 2.0), (PADDED, 1.0)):
        if (BOTH, "ms", other) in found:
            speed = paired_ratio(found[BOTH, "ms", other], times[best])
            what = f"{BOTH}, speed of {best} to {other}"
            result.require(what, "times", speed, at_least=least, axes=cell.axes)
    for what, most in MOST.items() if cell.batch_size == 64 else ():
        step = found.get((f"{what}, a time step", "us", best))
        if step is not None:
            name = f"{what}, a time step of {best}"
            result.require(name, "us", step, at_most=most, axes=cell.axes)
