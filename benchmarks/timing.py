"""Times of several sides taken in turn, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

MOST_PREPARED = 32  # calls in succession: what each needs beforehand lies in memory at once


@dataclass(frozen=True)
class Spread:
    """One value a repeat, in the order taken; reported as median, smallest and largest."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)

    def map(self, change: Callable[[float], float]) -> Spread:
        """Each value changed: to another unit, or from seconds to a rate."""
        return Spread(tuple(map(change, self.values)))


@dataclass(frozen=True)
class Prepared:
    """A side whose `call` takes what `prepare` made anew for it, outside the time that is taken."""

    prepare: Callable[[], Any]
    call: Callable[[Any], object]


def interleaved(
    sides: Mapping[str, Callable[[], object] | Prepared],
    *,
    repeats: int,
    device: torch.device,
    warmup: int = 1,
    min_seconds: float = 0.0,
) -> dict[str, Spread]:
    """Seconds a call of each side, taken in turn: A B A B ..., after `warmup` calls of each.

    A side that the warm-up shows to be short is called as often in succession as fills
    `min_seconds`, and the mean of these calls is one repeat's value.
    """
    calls = dict.fromkeys(sides, 1)
    for name, side in sides.items():
        for _ in range(warmup):
            once = _seconds(side, 1, device)
            calls[name] = max(1, math.ceil(min_seconds / max(once, 1e-9)))
            if isinstance(side, Prepared):
                calls[name] = min(calls[name], MOST_PREPARED)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in shown(repeats, " | ".join(sides)):
        for name, side in sides.items():
            taken[name].append(_seconds(side, calls[name], device))
    return {name: Spread(tuple(values)) for name, values in taken.items()}


def paired_ratio(numerator: Spread, denominator: Spread) -> Spread:
    """The ratio of each repeat's two values: neighbours in time, so a slow minute cancels out."""
    pairs = zip(numerator.values, denominator.values, strict=True)
    return Spread(tuple(a / b for a, b in pairs))


def highest(spreads: Iterable[Spread]) -> Spread:
    """Each repeat's largest value: the highest of several floors."""
    return Spread(tuple(map(max, zip(*(spread.values for spread in spreads), strict=True))))


def _seconds(side: Callable[[], object] | Prepared, calls: int, device: torch.device) -> float:
    if isinstance(side, Prepared):
        made = [side.prepare() for _ in range(calls)]
        return _timed(lambda: side.call(made.pop()), calls, device)
    return _timed(side, calls, device)


def _timed(call: Callable[[], object], calls: int, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    _wait(device)
    return (time.perf_counter() - started) / calls


def _wait(device: torch.device) -> None:
    """A GPU works on after a call returns; its time is only known once it has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def shown(repeats: int, title: str) -> Iterable[int]:
    """The repeats behind a bar, or without one where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # a machine that only computes
        return range(repeats)
    return tqdm(range(repeats), desc=title, unit="repeat", leave=False)
