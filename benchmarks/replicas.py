"""suite=replicas: models that train side by side, beside one such model after another.

Shapes: n images, F image feature, B captions a batch, H hidden (= E embedding).
"""

import itertools
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from benchmarks.captions import endless
from benchmarks.epoch import TrainingBenchmark, start, take_in_turn
from benchmarks.record import Axes, SuiteResult
from benchmarks.settings import Run, setting
from benchmarks.timing import paired_ratio, synchronize
from benchmarks.training import CASES, Training
from benchmarks.worker import Worker
from captioner.data.dataset import BatchOrder
from captioner.training.memory import keep_freed_memory
from captioner.training.randomness import OwnRandomness
from captioner.training.replicas import TURN, Replica, ReplicaTrainer
from captioner.training.reporting import Reporting
from captioner.training.setup import TrainingSetup
from captioner.training.trainer import Trainer

ASKED = 0.7  # of the time that the models take one after another
ALONE, BESIDE = "one after another", "side by side"


@dataclass
class ReplicasBenchmark(TrainingBenchmark):
    """suite=replicas: how many models, of which cases of suite=epoch, at which batch sizes."""

    suite: ClassVar[str] = "replicas"
    replicas: int = 8
    cases: list[str] = setting(["adam_256", "neuraltalk"], choices=tuple(CASES))
    batch_sizes: list[int] = setting([16, 32, 100])
    steps: int = 8


def replicas_suite(settings: ReplicasBenchmark, run: Run) -> SuiteResult:
    """Time a training step of a model both ways, in turn, each in a process of its own; data,
    start-up and validation are not in it."""
    count = settings.replicas
    result = SuiteResult({"replicas": count, **settings.described(run)})
    for case, batch_size in itertools.product(settings.cases, settings.batch_sizes):
        own = replace(CASES[case], batch_size=batch_size)
        axes: Axes = {"case": case, "H": own.hidden_size, "B": batch_size}
        training = Training(workload=settings.workload(run), settings=own, device=run.device)
        with ExitStack() as stack:
            together = Worker(SideBySide, count, training, threads=torch.get_num_threads())
            both = {ALONE: start(stack, "auto", training), BESIDE: stack.enter_context(together)}
            taken = take_in_turn(both, steps=settings.steps, repeats=run.repeats)
        taken[BESIDE] = taken[BESIDE].map(lambda seconds: seconds / count)
        for name, spread in taken.items():
            result.add("a step of a model", name, "ms", spread.map(lambda s: 1e3 * s), axes)
        ratio = paired_ratio(taken[BESIDE], taken[ALONE])
        what = f"time of {count} side by side to one after another"
        result.require(what, "times", ratio, at_most=ASKED, axes=axes)
    return result


class SideBySide:
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
        settings=training.settings.trainer,
        device=training.device,
        random=OwnRandomness(training.device),
        reporting=Reporting(show_progress=False),
    )
    trainer.begin_epoch()
    return trainer
