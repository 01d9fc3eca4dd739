"""suite=replicas: models that train side by side, beside one such model after another.

Shapes: n images, F image feature, B captions a batch, H hidden (= E embedding).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.epoch_settings import CASES, StepSettings
from benchmarks.epoch_sides import Parts, Workload, build_side
from benchmarks.record import Axes, Figure, Requirement, SuiteResult
from benchmarks.side_process import SideProcess
from benchmarks.timing import Spread, paired_ratio, shown
from benchmarks.workload import Endless
from captioner.training.memory import keep_freed_memory
from captioner.training.randomness import OwnRandomness
from captioner.training.replicas import TURN, Replica, ReplicaTrainer

ASKED = 0.7  # of the time that the models take one after another
ALONE, BESIDE = "one after another", "side by side"


def replicas_suite(
    *,
    replicas: int,
    images: int,
    feature_dim: int,
    cases: Sequence[str],
    batch_sizes: Sequence[int],
    steps: int,
    repeats: int,
    device: torch.device,
    data_root: str | None,
    seed: int,
) -> SuiteResult:
    """Time a training step of a model both ways; data, start-up and validation are not in it."""
    workload = Workload(
        images=images, feature_dim=feature_dim, data_root=data_root, seed=seed, device=device
    )
    result = SuiteResult(
        {
            "replicas": replicas,
            "images": images,
            "data": "synthetic" if data_root is None else "flickr8k",
            "feature_dim": feature_dim,
            "steps_a_repeat": steps,
            "cases": {case: vars(CASES[case]) for case in cases},
            "seed": seed,
        },
        [],
        [],
    )
    for case in cases:
        for batch_size in batch_sizes:
            settings = dataclasses.replace(CASES[case], batch_size=batch_size)
            axes: Axes = {"case": case, "H": settings.hidden_size, "B": batch_size}
            _measure(result, axes, settings, workload, replicas, steps, repeats)
    return result


def _measure(
    result: SuiteResult, axes: Axes, settings: StepSettings, workload: Workload, replicas: int,
    steps: int, repeats: int,
) -> None:  # fmt: skip
    """One model size: both sides in turn, each in a process of its own."""
    threads = torch.get_num_threads()
    with ExitStack() as stack:

        def start(build: Any, *arguments: Any) -> SideProcess:
            return stack.enter_context(
                SideProcess(build, *arguments, threads=threads, device=workload.device)
            )

        sides = {
            ALONE: (start(build_side, "auto", workload, settings), replicas),
            BESIDE: (start(SideBySide, replicas, workload, settings), 1),
        }
        for side, _ in sides.values():
            side.seconds(TURN)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in shown(repeats, f"{axes}"):
            for name, (side, times) in sides.items():
                taken[name].append(side.seconds(steps) * times / steps / replicas)
    seconds = {name: Spread(tuple(values)) for name, values in taken.items()}
    result.figures.extend(
        Figure("a step of a model", name, "ms", spread.map(lambda s: 1e3 * s), axes)
        for name, spread in seconds.items()
    )
    ratio = paired_ratio(seconds[BESIDE], seconds[ALONE])
    what = f"time of {replicas} side by side to one after another"
    result.requirements.append(Requirement(what, "times", ratio, at_most=ASKED, axes=axes))


class SideBySide:
    """A group of replicas, taken a few steps at a time as ReplicaTrainer.run takes them."""

    def __init__(self, replicas: int, workload: Workload, settings: StepSettings) -> None:
        if workload.device.type == "cpu":
            keep_freed_memory()  # as scripts/train.py does
        parts = Parts(workload, settings)
        order = parts.order()
        trainers = [parts.own_loop("auto").trainer for _ in range(replicas)]
        for trainer in trainers:
            trainer.order, trainer.random = order, OwnRandomness(workload.device)
            trainer.begin_epoch()
        self.group = ReplicaTrainer(
            [Replica(trainer, {}) for trainer in trainers],
            loader=(), order=order, folder=Path(), device=workload.device, show_progress=False,
        )  # fmt: skip
        self.rows, self.dataset = iter(Endless(order)), parts.dataset
        self.losses: list[float] = []

    def steps(self, count: int) -> None:
        """`count` steps of every replica."""
        for done in range(0, count, TURN):
            batches = [self.dataset[next(self.rows)] for _ in range(min(TURN, count - done))]
            for replica in self.group.replicas:
                replica.trainer.progress.position = 0  # one endless epoch: nothing is due
            self.group.take_turn((0, 0), batches)
