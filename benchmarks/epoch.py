"""suite=epoch: an epoch over the training captions, this package's step beside the plain loop.
suite=replicas: models that train in one process, beside one after another and a process each.

Shapes: n images, F image feature, B captions a batch, H hidden (= E embedding).
"""

import itertools
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.captions import (
    Workload,
    captioned_images,
    endless,
    load_workload,
    random_features,
)
from benchmarks.memory import peak_bytes
from benchmarks.settings import EpochBenchmark, ReplicasBenchmark, TrainingBenchmark
from benchmarks.suite import Axes, Run, SuiteResult
from benchmarks.timing import Spread, in_turn, paired_ratio, synchronize
from benchmarks.training import CASES, GEMMS, PLAIN, TimedSteps, Training
from benchmarks.worker import ROOT, Worker
from captioner.build.trainer import build_trainer
from captioner.commands.cli import compose_config
from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder
from captioner.files import write_json
from captioner.training.memory import keep_freed_memory
from captioner.training.randomness import OwnRandomness
from captioner.training.replicas import TURN, Replica, ReplicaTrainer
from captioner.training.reporting import Reporting
from captioner.training.setup import TrainingSetup
from captioner.training.trainer import Trainer

# How many times the plain loop's speed is asked for.
ASKED = {"adam_256": 2.0, "adam_512": 1.8, "neuraltalk": 2.0, "neon": 1.8, "nic": 1.8}
MEMORY_LIMIT = 1.5e9  # bytes
SAME_LOSS = 2e-3  # nats a token: float32 and an optimiser that blows roundings up
WARM_UP = 3  # steps
FEATURES = "features.npy"
AIM = 0.7  # of the time that the models take one after another
ALONE, PROCESSES, TOGETHER = "one after another", "a process each", "replicas"


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


def replicas_suite(settings: ReplicasBenchmark, run: Run) -> SuiteResult:
    """Time a training step of a model each way; data, start-up and validation are not in it."""
    result = SuiteResult({"processes": settings.processes, **described(settings, run)})
    for case, batch_size in itertools.product(settings.cases, settings.batch_sizes):
        own = replace(CASES[case], batch_size=batch_size)
        training = Training(workload=make_workload(settings, run), settings=own, device=run.device)
        for count in settings.replicas:
            axes: Axes = {"case": case, "K": count, "H": own.hidden_size, "B": batch_size}
            _measure_replicas(result, axes, settings, training, run)
    return result


def _measure_replicas(
    result: SuiteResult, axes: Axes, settings: ReplicasBenchmark, training: Training, run: Run
) -> None:
    """Figures of K models: steps taken in turn of one alone, of a process each and of replicas."""
    count, threads = int(axes["K"]), torch.get_num_threads()
    with ExitStack() as stack:
        ways: dict[str, Any] = {ALONE: start(stack, "auto", training)}
        if count <= settings.processes:
            ways[PROCESSES] = stack.enter_context(ProcessEach(count, training, threads=threads))
        ways[TOGETHER] = stack.enter_context(Worker(Replicas, count, training, threads=threads))
        taken = take_in_turn(ways, steps=settings.steps, repeats=run.repeats)
        if run.device.type == "cpu":
            for name in (ALONE, TOGETHER):
                peak = ways[name].call("result")[1] / 1e6
                result.add("peak memory of the process", name, "MB", peak, axes)
    for name in taken.keys() - {ALONE}:
        taken[name] = taken[name].map(lambda seconds: seconds / count)
    for name, spread in taken.items():
        result.add("a step of a model", name, "ms", spread.map(lambda s: 1e3 * s), axes)
    if count > 1:
        ratio = paired_ratio(taken[TOGETHER], taken[ALONE])
        what = "time of replicas to one after another"
        result.require(what, "times", ratio, at_most=AIM, axes=axes)


class ProcessEach:
    """Models that each train in a process, all at the same time, the threads divided over them."""

    def __init__(self, count: int, training: Training, *, threads: int) -> None:
        own = max(1, threads // count)
        given = ("auto", training, WARM_UP)
        self._workers = [Worker(TimedSteps, *given, threads=own) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)

    def __enter__(self) -> "ProcessEach":
        self._stack = ExitStack()
        for worker in self._workers:
            self._stack.enter_context(worker)
        self._call("result")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._pool.shutdown()

    def call(self, method: str, count: int) -> float:
        """`count` steps of each; the seconds a step of all."""
        started = time.perf_counter()
        self._call(method, count)
        return (time.perf_counter() - started) / count

    def _call(self, *arguments: Any) -> None:
        list(self._pool.map(lambda worker: worker.call(*arguments), self._workers))


class Replicas:
    """A group of replicas, taken a few steps at a time as ReplicaTrainer.run takes them."""

    def __init__(self, replicas: int, training: Training) -> None:
        if training.device.type == "cpu":
            keep_freed_memory()  # as scripts/train.py does
        order, self.device = training.order(), training.device
        self.group = ReplicaTrainer(
            [Replica(_make_trainer(training, order), {}) for _ in range(replicas)],
            loader=(),
            order=order,
            folder=Path(),
            device=self.device,
            show_progress=False,
        )
        self.rows, self.dataset = endless(order), training.data.dataset
        self.seconds(TURN)

    def seconds(self, count: int) -> float:
        """`count` steps of every replica; the seconds a step of all."""
        started = time.perf_counter()
        for done in range(0, count, TURN):
            batches = [self.dataset[next(self.rows)] for _ in range(min(TURN, count - done))]
            for replica in self.group.replicas:
                replica.trainer.progress.position = 0  # one endless epoch: nothing is due
            self.group.take_turn((0, 0), batches)
        synchronize(self.device)
        return (time.perf_counter() - started) / count

    def result(self) -> tuple[None, int]:
        """As TimedSteps has it: no losses, and the peak memory of this process."""
        return None, peak_bytes()


def _make_trainer(training: Training, order: BatchOrder) -> Trainer:
    """One replica's, without validation and reports."""
    model = training.model("auto")
    trainer = Trainer(
        TrainingSetup(
            model=model,
            optimizer=training.optimizer(model),
            loader=(),
            order=order,
            validate=lambda step: {},
            texts={},
        ),
        folder=Path(),
        settings=replace(training.settings.trainer, checkpoint_minutes=math.inf),
        device=training.device,
        random=OwnRandomness(training.device),
        reporting=Reporting(show_progress=False),
    )
    trainer.begin_epoch()
    return trainer
