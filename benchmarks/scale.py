"""suite=scale: how a step and memory grow with data, batch, vocabulary and model."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.captions import CAPTIONS_EACH, Workload
from benchmarks.epoch import start, take_in_turn
from benchmarks.settings import ScaleBenchmark
from benchmarks.suite import Axes, Run, SuiteResult
from benchmarks.timing import Spread
from benchmarks.training import StepSettings, Training

AXES = ("images", "batch_size", "vocabulary", "hidden_size")
MEMORY = "memory of the process"
QUANTITIES = {axis: ("an epoch" if axis == "images" else "a step", MEMORY) for axis in AXES}
BASE = StepSettings(hidden_size=256, batch_size=100, clip_norm=5.0)
BASE_IMAGES = 6000
BENT = 0.15  # of the value: what a point may lie off the line through all of them
WORDS_READ = 12.8  # tokens that the LSTM reads of a caption, its image included


def scale_suite(settings: ScaleBenchmark, run: Run) -> SuiteResult:
    """Vary one size at a time around BASE; features lie in a memory-mapped file."""
    values = (settings.images, settings.batch_sizes, settings.vocabularies, settings.hidden_sizes)
    points = dict(zip(AXES, values, strict=True))
    common = {"steps_a_repeat": settings.steps, "data": "synthetic", "seed": run.seed}
    sizes = {"base_images": BASE_IMAGES, "feature_dim": settings.feature_dim}
    result = SuiteResult({"base": vars(BASE), **sizes, **common, **points})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        _write_features(path, max([*settings.images, BASE_IMAGES]), settings.feature_dim, run.seed)
        workload = Workload(BASE_IMAGES, settings.feature_dim, seed=run.seed, features=str(path))
        base = Training(workload=workload, settings=BASE, device=run.device)
        for axis in AXES:
            _measure(result, axis, points[axis], base, settings.steps, run)
            _require_straight(result, axis)
    return result


def _write_features(path: Path, images: int, feature_dim: int, seed: int) -> None:
    shape = (images, 1, feature_dim)
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    generator = np.random.default_rng(seed)
    for part in np.split(written, range(4096, images, 4096)):
        part[:] = generator.random(part.shape, np.float32) - 0.5
    written.flush()


def _measure(
    result: SuiteResult, axis: str, values: Sequence[int], base: Training, steps: int, run: Run
) -> None:
    """Time of a step and memory at each value, all points of an axis in turn."""
    with ExitStack() as stack:
        workers = {}
        for value in values:
            changed: dict[str, Any] = {axis: value}
            if axis in ("images", "vocabulary"):
                training = replace(base, workload=replace(base.workload, **changed))
            else:
                training = replace(base, settings=replace(base.settings, **changed))
            workers[str(value)] = start(stack, "auto", training)
        taken = take_in_turn(workers, steps=steps, repeats=run.repeats)
        found = {name: worker.call("result") for name, worker in workers.items()}
    for name, step in taken.items():
        axes: Axes = {axis: int(name)}
        result.add("a step", "captioner", "ms", step.map(lambda s: 1e3 * s), axes)
        if axis == "images":
            batches = -(-int(name) * CAPTIONS_EACH // BASE.batch_size)
            epoch = Spread(tuple(batches * seconds for seconds in step.values))
            result.add("an epoch", "captioner", "s", epoch, axes)
        result.add(MEMORY, "captioner", "MB", found[name][2] / 1e6, axes)


def _require_straight(result: SuiteResult, axis: str) -> None:
    """How far the points may lie off a straight line over what a step grows with: the size itself,
    or for H its GEMMs, which have H squared."""
    for quantity in QUANTITIES[axis]:
        figures = [one for one in result.figures if one.what == quantity and axis in one.axes]
        x = [float(one.axes[axis]) for one in figures]
        if axis == "hidden_size":
            x = [h * (16 * h * WORDS_READ + 2 * 2544 * WORDS_READ) for h in x]
        if len(x) >= 3:
            apart = bent(x, [one.spread.median for one in figures])
            what = f"{quantity} over {axis}, off a straight line"
            result.require(what, "share", apart, at_most=BENT)


def bent(x: Sequence[float], y: Sequence[float]) -> float:
    """The largest share of its value that a point lies off the line of least relative squares."""
    weights = 1 / np.asarray(y)
    line = np.polyval(np.polyfit(x, y, 1, w=weights), x)
    return float(np.abs((line - y) * weights).max())
