"""suite=scale: how a step and memory grow with the data, the batch, the vocabulary and the model.

Shapes: n images, F image feature, B captions a batch, H hidden (= E embedding), V vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.epoch_settings import StepSettings
from benchmarks.epoch_sides import Workload, build_side
from benchmarks.record import Axes, Figure, Requirement, SuiteResult
from benchmarks.side_process import SideProcess
from benchmarks.timing import Spread, shown
from benchmarks.workload import CAPTIONS_EACH

AXES = ("images", "batch_size", "vocabulary", "hidden_size")
BASE = StepSettings(hidden_size=256, batch_size=100, clip_norm=5.0)
BASE_IMAGES = 6000
BENT = 0.15  # of the value: what a point may lie off the line through all of them
WORDS_READ = 12.8  # tokens that the LSTM reads of a caption, its image included
WARM_UP = 3  # steps


def scale_suite(
    *,
    images: Sequence[int],
    batch_sizes: Sequence[int],
    vocabularies: Sequence[int],
    hidden_sizes: Sequence[int],
    feature_dim: int,
    steps: int,
    repeats: int,
    device: torch.device,
    data_root: str | None,
    seed: int,
) -> SuiteResult:
    """Vary one size at a time around BASE; features lie in a memory-mapped file."""
    points = dict(zip(AXES, (images, batch_sizes, vocabularies, hidden_sizes), strict=True))
    settings = {"base": vars(BASE), "base_images": BASE_IMAGES, "feature_dim": feature_dim,
                "steps_a_repeat": steps, "data": "synthetic", "seed": seed, **points}  # fmt: skip
    result = SuiteResult(settings, [], [])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        _write_features(path, max([*images, BASE_IMAGES]), feature_dim, seed=seed)
        base = Workload(
            images=BASE_IMAGES, feature_dim=feature_dim, data_root=None, seed=seed, device=device,
            features=str(path),
        )  # fmt: skip
        for axis, values in points.items():
            for value, (step, memory) in _measure(axis, values, base, steps, repeats).items():
                _add(result, axis, value, step, memory)
    for axis in points:
        result.requirements.extend(_straight(result, axis))
    return result


def _write_features(path: Path, images: int, feature_dim: int, *, seed: int) -> None:
    shape = (images, 1, feature_dim)
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    generator = np.random.default_rng(seed)
    for first in range(0, images, 4096):
        part = written[first : first + 4096]
        part[:] = generator.random(part.shape, np.float32) - 0.5
    written.flush()


def _measure(
    axis: str, values: Sequence[int], base: Workload, steps: int, repeats: int
) -> dict[int, tuple[Spread, int]]:
    """Seconds a step and bytes of memory at each value, all points of an axis in turn."""
    with ExitStack() as stack:
        sides = {}
        for value in values:
            process = SideProcess(
                build_side, "auto", *_point(axis, value, base),
                threads=torch.get_num_threads(), device=base.device,
            )  # fmt: skip
            sides[value] = stack.enter_context(process)
            sides[value].seconds(WARM_UP)
        taken: dict[int, list[float]] = {value: [] for value in values}
        for _ in shown(repeats, f"{axis}: {', '.join(map(str, values))}"):
            for value, side in sides.items():
                taken[value].append(side.seconds(steps) / steps)
        return {v: (Spread(tuple(taken[v])), side.own_bytes()) for v, side in sides.items()}


def _point(axis: str, value: int, base: Workload) -> tuple[Workload, StepSettings]:
    if axis == "images":
        return replace(base, images=value), BASE
    if axis == "vocabulary":
        return replace(base, vocabulary=value), BASE
    changed: dict[str, Any] = {axis: value}
    return base, replace(BASE, **changed)


def _add(result: SuiteResult, axis: str, value: int, step: Spread, memory: int) -> None:
    axes: Axes = {axis: value}
    result.figures.append(Figure("a step", axis, "ms", step.map(lambda s: 1e3 * s), axes))
    if axis == "images":
        batches = -(-value * CAPTIONS_EACH // BASE.batch_size)
        result.figures.append(Figure("a pass", axis, "s", step.map(lambda s: batches * s), axes))
    held = Spread((memory / 1e6,))
    result.figures.append(Figure("memory of the process", axis, "MB", held, axes))


def _straight(result: SuiteResult, axis: str) -> list[Requirement]:
    """How far the points lie off a straight line."""
    found = []
    what = "a pass" if axis == "images" else "a step"
    for quantity in (what, "memory of the process"):
        figures = [f for f in result.figures if f.what == quantity and f.side == axis]
        x = [_work(axis, figure.axes) for figure in figures]
        y = [figure.spread.median for figure in figures]
        if len(x) < 3:
            continue
        named = f"{quantity} over {axis}, off a straight line"
        found.append(Requirement(named, "share", Spread((bent(x, y),)), at_most=BENT))
    return found


def bent(x: Sequence[float], y: Sequence[float]) -> float:
    """The largest share of its value that a point lies off the line of least relative squares."""
    weights = 1 / np.asarray(y)
    line = np.polyval(np.polyfit(x, y, 1, w=weights), x)
    return float(np.abs((line - y) * weights).max())


def _work(axis: str, axes: Mapping[str, Any]) -> float:
    """What a step grows with: the size itself, or for H its products, which have H squared."""
    value = float(axes[axis])
    if axis != "hidden_size":
        return value
    return value * (16 * value * WORDS_READ + 2 * 2544 * WORDS_READ)
