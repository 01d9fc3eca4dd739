"""How long a time step of the LSTM's kernels on the chip takes, and what these kernels promise.

Shapes: B sequences, T longest length, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.lstm_case import Case, Cell
from benchmarks.lstm_sides import BOTH, ON_CHIP, PADDED, PEER, Side
from benchmarks.record import Figure, Requirement
from benchmarks.timing import Spread

CALLS = 20
KERNELS = {"forward": "forward_steps<", "backward": "backward_steps<"}
MOST = {"forward": 3.0, "backward": 4.0}  # microseconds of a step at B = 64
PROMISED = (64, 128, 256)  # batches, at H = 512 and captions' lengths


def step_figures(case: Case, sides: Mapping[str, Side], cell: Cell) -> list[Figure]:
    """Microseconds of a time step of each kernel on the chip: its whole time, by the profiler,
    through the number of steps. Nothing else is in it: no product before or after, no launch."""
    figures = []
    for name in (name for name in ON_CHIP if name in sides):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(CALLS):
                sides[name].both()
            torch.cuda.synchronize()
        for what, taken in kernel_times(profiler.events(), len(case.batch_sizes)).items():
            spread = Spread(tuple(taken))
            figures.append(Figure(f"{what}, a time step", name, "us", spread, axes=cell.axes))
    return figures


def kernel_times(events: Any, steps: int) -> dict[str, list[float]]:
    """Of each direction the microseconds a step of every call of its kernel; none where the
    profiler saw none."""
    taken = {
        what: [event.device_time_total / steps for event in events if kernel in event.name]
        for what, kernel in KERNELS.items()
    }
    return {what: times for what, times in taken.items() if times}


def promises_on_chip(figures: Sequence[Figure], cell: Cell) -> list[Requirement]:
    """What the faster of the ways on the chip must reach in this cell: twice packed nn.LSTM, no
    slower than padded cuDNN, and so much for a time step at B = 64."""
    sizes = (cell.lengths, cell.hidden_size)
    if sizes != ("flickr8k", 512) or cell.batch_size not in PROMISED:
        return []
    found = {(one.what, one.unit, one.side): one.spread for one in figures}
    times = {name: found[BOTH, "ms", name] for name in ON_CHIP if (BOTH, "ms", name) in found}
    if not times:
        return []
    best = min(times, key=lambda name: times[name].median)
    promises = []
    for peer, least in ((PEER, 2.0), (PADDED, 1.0)):
        speed = found.get((f"{BOTH}, speed to {peer}", "times", best))
        if speed is None and (BOTH, "ms", peer) in found:
            other = found[BOTH, "ms", peer].values
            pairs = zip(other, times[best].values, strict=True)
            speed = Spread(tuple(theirs / ours for theirs, ours in pairs))
        if speed is not None:
            what = f"{BOTH}, speed of {best} to {peer}"
            promises.append(Requirement(what, "times", speed, at_least=least, axes=cell.axes))
    if cell.batch_size == 64:
        for what, most in MOST.items():
            step = found.get((f"{what}, a time step", "us", best))
            if step is not None:
                name = f"{what}, a time step of {best}"
                promises.append(Requirement(name, "us", step, at_most=most, axes=cell.axes))
    return promises
