"""Times of several implementations taken in turn: what disturbs the machine disturbs all alike."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

MOST_PREPARED = 32  # calls in succession: what each needs beforehand lies in memory at once


@dataclass(frozen=True)
class Spread:
    """One value a repeat, in the order taken."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def map(self, change: Callable[[float], float]) -> "Spread":
        """Each value changed: to another unit, or from seconds to a rate."""
        return Spread(tuple(map(change, self.values)))


@dataclass(frozen=True)
class Prepared:
    """Something to time whose `call` takes what `prepare` made anew for it, which is not timed."""

    prepare: Callable[[], Any]
    call: Callable[[Any], object]


def in_turn(timed: Mapping[str, Callable[[], float]], *, repeats: int) -> dict[str, Spread]:
    """What each callable says of its own time, taken in turn: A B A B ..."""
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in _shown(repeats, " | ".join(timed)):
        for name, seconds in timed.items():
            taken[name].append(seconds())
    return {name: Spread(tuple(values)) for name, values in taken.items()}


def interleaved(
    implementations: Mapping[str, Callable[[], object] | Prepared],
    *,
    repeats: int,
    device: torch.device,
    warmup: int = 1,
    min_seconds: float = 0.0,
) -> dict[str, Spread]:
    """Seconds a call of each, taken in turn after `warmup` calls of each; a repeat's value is the
    mean of as many calls in succession as fill `min_seconds`."""
    timed: dict[str, Callable[[], float]] = {}
    for name, one in implementations.items():
        calls = 1
        for _ in range(warmup):
            calls = max(1, math.ceil(min_seconds / max(_seconds(one, 1, device), 1e-9)))
        most = MOST_PREPARED if isinstance(one, Prepared) else calls
        timed[name] = partial(_seconds, one, min(calls, most), device)
    return in_turn(timed, repeats=repeats)


def paired_ratio(numerator: Spread, denominator: Spread) -> Spread:
    """The ratio of each repeat's two values: neighbours in time, so a slow minute cancels out."""
    pairs = zip(numerator.values, denominator.values, strict=True)
    return Spread(tuple(a / b for a, b in pairs))


def seconds_a_call(
    call: Callable[[], object], device: torch.device, *, calls: int = 20, repeats: int = 5
) -> float:
    """The least seconds a call of several rounds; on a GPU the calls of a round are one CUDA graph,
    as the host takes longer to launch a small kernel than it runs."""
    if device.type != "cuda":
        return min([_seconds(call, calls, device) for _ in range(repeats + 1)][1:])
    call()  # libraries take their memory now
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return min([_seconds(graph.replay, 1, device) / calls for _ in range(repeats + 1)][1:])


def _seconds(one: Callable[[], object] | Prepared, calls: int, device: torch.device) -> float:
    pending = [
        partial(one.call, one.prepare()) if isinstance(one, Prepared) else one for _ in range(calls)
    ]
    synchronize(device)
    started = time.perf_counter()
    while pending:
        pending.pop()()
    synchronize(device)
    return (time.perf_counter() - started) / calls


def synchronize(device: torch.device) -> None:
    """A GPU works on after a call returns; its time is only known once it has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _shown(repeats: int, title: str) -> Iterable[int]:
    """The repeats behind a bar where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # a machine that only computes
        return range(repeats)
    return tqdm(range(repeats), desc=title, unit="repeat", leave=False)
