"""suite=epoch: an epoch over the training captions, this package's step beside the plain loop.

Shapes: n images, F image feature, B captions a batch, H hidden (= E embedding).
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.captions import (
    Workload,
    captioned_images,
    load_workload,
    random_features,
)
from benchmarks.memory import peak_bytes
from benchmarks.settings import EpochBenchmark, TrainingBenchmark
from benchmarks.suite import Axes, Run, SuiteResult
from benchmarks.timing import Spread, in_turn, paired_ratio
from benchmarks.training import CASES, GEMMS, PLAIN, TimedSteps, Training
from benchmarks.worker import ROOT, Worker
from captioner.build.trainer import build_trainer
from captioner.commands.cli import compose_config
from captioner.data.captions import CaptionedImage
from captioner.files import write_json

# How many times the plain loop's speed is asked for.
ASKED = {"adam_256": 2.0, "adam_512": 1.8, "neuraltalk": 2.0, "neon": 1.8, "nic": 1.8}
MEMORY_LIMIT = 1.5e9  # bytes
SAME_LOSS = 2e-3  # nats a token: float32 and an optimiser that blows roundings up
WARM_UP = 3  # steps
FEATURES = "features.npy"


def make_workload(settings: TrainingBenchmark, run: Run) -> Workload:
    """The data of all cases."""
    return Workload(settings.images, settings.feature_dim, data_root=run.data_root, seed=run.seed)


def described(settings: TrainingBenchmark, run: Run) -> dict[str, Any]:
    """For a record."""
    sizes = {"images": settings.images, "feature_dim": settings.feature_dim}
    cases = {case: vars(CASES[case]) for case in settings.cases}
    data = "synthetic" if run.data_root is None else "flickr8k"
    common = {"steps_a_repeat": settings.steps, "data": data, "seed": run.seed}
    return {**sizes, **common, "cases": cases}


def take_in_turn(workers: Mapping[str, Worker], *, steps: int, repeats: int) -> dict[str, Spread]:
    """Seconds a step of what each worker holds, blocks of `steps` steps taken in turn."""
    timed = {name: partial(worker.call, "seconds", steps) for name, worker in workers.items()}
    return in_turn(timed, repeats=repeats)


def start(stack: ExitStack, name: str, training: Training) -> Worker:
    """A worker that has built TimedSteps, with this process's number of threads."""
    built = Worker(TimedSteps, name, training, WARM_UP, threads=torch.get_num_threads())
    worker = stack.enter_context(built)
    worker.call("result")
    return worker


def epoch_suite(settings: EpochBenchmark, run: Run) -> SuiteResult:
    """Steps of every implementation, each in its process; peak memory of a run on a CPU."""
    workload = make_workload(settings, run)
    data = load_workload(workload)
    counts = {"captions": len(data.dataset), "tokens": data.tokens}
    result = SuiteResult({**described(settings, run), **counts})
    for case in settings.cases:
        _measure_case(result, case, settings, workload, run)
    if settings.memory and run.device.type == "cpu":
        images = captioned_images(settings.images, data_root=run.data_root, seed=run.seed)
        peak = peak_memory_of_training(images, data_root=run.data_root, seed=run.seed) / 1e6
        result.add("peak memory of a run", "captioner", "MB", peak)
        result.require("peak memory", "MB", peak, at_most=MEMORY_LIMIT / 1e6)
    return result


def _measure_case(
    result: SuiteResult, case: str, settings: EpochBenchmark, workload: Workload, run: Run
) -> None:
    """Figures of every implementation; speed, share of the GEMMs and losses of the backends."""
    own = CASES[case]
    training = Training(workload=workload, settings=own, device=run.device)
    with ExitStack() as stack:
        names = [PLAIN, GEMMS, *settings.backends]
        workers = {name: start(stack, name, training) for name in names}
        taken = take_in_turn(workers, steps=settings.steps, repeats=run.repeats)
        found = {name: worker.call("result") for name, worker in workers.items()}
    axes: Axes = {"case": case, "H": own.hidden_size, "B": own.batch_size}
    steps, tokens = training.steps_an_epoch, training.data.tokens
    for name, step in taken.items():
        result.add("a step", name, "ms", step.map(lambda s: 1e3 * s), axes)
        result.add("an epoch", name, "s", step.map(lambda s: steps * s), axes)
        rate = step.map(lambda s: tokens / (steps * s))
        result.add("tokens a second", name, "tokens/s", rate, axes)
        if run.device.type == "cpu":
            result.add("peak memory of the process", name, "MB", found[name][1] / 1e6, axes)
    for name in settings.backends:
        for what, other, asked in (
            (f"speed of {name} to plain PyTorch", PLAIN, ASKED[case] if name == "auto" else 1.0),
            (f"GEMMs alone, share of {name}'s step", GEMMS, 0.7),
        ):
            ratio = paired_ratio(taken[other], taken[name])
            result.require(what, "times", ratio, at_least=asked, axes=axes)
        if not (own.input_dropout or own.output_dropout):
            pairs = zip(found[PLAIN][0][:100], found[name][0], strict=False)
            apart = [abs(a - b) for a, b in pairs]
            what = f"losses of {name} apart from plain PyTorch's, {len(apart)} steps"
            result.require(what, "nats a token", max(apart), at_most=SAME_LOSS, axes=axes)


def peak_memory_of_training(
    images: Sequence[CaptionedImage], *, data_root: str | None, seed: int
) -> float:
    """Bytes at the peak of a run as scripts/train.py's in a process of its own: reading, one epoch
    over `images`, validation on a sixth as many, checkpoints. CaptionerError when it fails."""
    dev = captioned_images(max(1, len(images) // 6), data_root=data_root, seed=seed, split="dev")
    with tempfile.TemporaryDirectory() as folder:
        _write_data(Path(folder), {"train": images, "val": dev}, seed=seed)
        with Worker(TrainingRun, folder, threads=torch.get_num_threads()) as worker:
            return float(worker.call("peak_bytes"))


def _write_data(folder: Path, splits: dict[str, Sequence[CaptionedImage]], *, seed: int) -> None:
    """Karpathy's JSON, empty image files (never opened) and features [n, 1, F]."""
    (folder / "images").mkdir()
    entries = []
    for split, images in splits.items():
        for image in images:
            (folder / "images" / image.name).touch()
            sentences = [{"raw": caption} for caption in image.captions]
            entries.append({"filename": image.name, "split": split, "sentences": sentences})
    write_json(folder / "captions.json", {"dataset": "benchmark", "images": entries})
    store = random_features([one for images in splits.values() for one in images], 1280, seed=seed)
    np.save(folder / FEATURES, store.features)
    write_json(folder / "features.names.json", store.names)


class TrainingRun:
    """A run on the data in `folder`."""

    def __init__(self, folder: str) -> None:
        overrides = [
            *("data=karpathy", f"data.json={folder}/captions.json", f"data.images={folder}/images"),
            *("encoder=features", f"encoder.path={folder}/{FEATURES}", f"run_dir={folder}/run"),
            *("device=cpu", f"threads={torch.get_num_threads()}", "trainer.epochs=1"),
            *("trainer.batch_size=100", "trainer.progress=false", "trainer.shown_pictures=0"),
        ]
        self.trainer = build_trainer(compose_config("train", overrides, configs=ROOT / "configs"))

    def peak_bytes(self) -> int:
        """Of this process, after the run."""
        self.trainer.run()
        return peak_bytes()
