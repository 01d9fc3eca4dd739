"""suite=epoch: an epoch over the training captions, this package's step beside the plain loop.

Shapes: n images, F image feature, B captions a batch, H hidden (= E embedding).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from benchmarks.captions import Workload, captioned_images, load_workload
from benchmarks.record import Axes, SuiteResult
from benchmarks.settings import Run, SuiteSettings, setting
from benchmarks.timing import Spread, in_turn, paired_ratio
from benchmarks.train_memory import peak_memory_of_training
from benchmarks.training import CASES, GEMMS, PLAIN, TimedSteps, Training
from benchmarks.worker import Worker
from captioner.ops import BACKENDS

# How many times the plain loop's speed is asked for.
ASKED = {"adam_256": 2.0, "adam_512": 1.8, "neuraltalk": 2.0, "neon": 1.8, "nic": 1.8}
MEMORY_LIMIT = 1.5e9  # bytes
SAME_LOSS = 2e-3  # nats a token: float32 and an optimiser that blows roundings up
WARM_UP = 3  # steps


@dataclass
class TrainingBenchmark(SuiteSettings):
    """What suite=epoch and suite=replicas share."""

    images: int = 6000
    feature_dim: int = 1280
    cases: list[str] = setting([*CASES], choices=tuple(CASES))
    steps: int = 10

    def workload(self, run: Run) -> Workload:
        """The data of all cases."""
        return Workload(self.images, self.feature_dim, data_root=run.data_root, seed=run.seed)

    def described(self, run: Run) -> dict[str, Any]:
        """For a record."""
        sizes = {"images": self.images, "feature_dim": self.feature_dim}
        cases = {case: vars(CASES[case]) for case in self.cases}
        common = {"steps_a_repeat": self.steps, "data": run.data, "seed": run.seed}
        return {**sizes, **common, "cases": cases}


@dataclass
class EpochBenchmark(TrainingBenchmark):
    """suite=epoch. cases: by name, of benchmarks/training.py; `steps` a repeat; `memory` also
    measures the peak of a whole run, which takes minutes."""

    suite: ClassVar[str] = "epoch"
    feature_dim: int = 4096
    backends: list[str] = setting(["auto"], choices=BACKENDS)
    memory: bool = True


def take_in_turn(workers: Mapping[str, Worker], *, steps: int, repeats: int) -> dict[str, Spread]:
    """Seconds a step of what each worker holds, blocks of `steps` steps taken in turn."""
    timed = {name: partial(worker.call, "seconds", steps) for name, worker in workers.items()}
    return in_turn(timed, repeats=repeats)


def start(stack: ExitStack, name: str, training: Training) -> Worker:
    """A worker that holds TimedSteps, with this process's number of threads."""
    worker = Worker(TimedSteps, name, training, WARM_UP, threads=torch.get_num_threads())
    return stack.enter_context(worker)


def epoch_suite(settings: EpochBenchmark, run: Run) -> SuiteResult:
    """Time blocks of `steps` steps of every implementation of each case, each in a process of its
    own; peak memory of a run on a CPU."""
    workload = settings.workload(run)
    data = load_workload(workload)
    counts = {"captions": len(data.dataset), "tokens": data.tokens}
    result = SuiteResult({**settings.described(run), **counts})
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
    own = CASES[case]
    training = Training(workload=workload, settings=own, device=run.device)
    names = [PLAIN, GEMMS, *settings.backends]
    with ExitStack() as stack:
        workers = {name: start(stack, name, training) for name in names}
        for worker in workers.values():
            worker.call("result")  # once all are ready
        taken = take_in_turn(workers, steps=settings.steps, repeats=run.repeats)
        found = {name: worker.call("result") for name, worker in workers.items()}
    axes: Axes = {"case": case, "H": own.hidden_size, "B": own.batch_size}
    steps, tokens = training.steps_an_epoch, training.data.tokens
    for name, step in taken.items():
        result.add("a step", name, "ms", step.map(lambda s: 1e3 * s), axes=axes)
        result.add("an epoch", name, "s", step.map(lambda s: steps * s), axes=axes)
        rate = step.map(lambda s: tokens / (steps * s))
        result.add("tokens a second", name, "tokens/s", rate, axes=axes)
        if run.device.type == "cpu":
            peak = found[name][1] / 1e6
            result.add("peak memory of the process", name, "MB", peak, axes=axes)
    for backend in settings.backends:
        losses = {name: found[name][0] for name in (PLAIN, backend)}
        _require(result, case, backend, taken, losses, axes)


def _require(
    result: SuiteResult,
    case: str,
    backend: str,
    taken: dict[str, Spread],
    losses: dict[str, list[float]],
    axes: Axes,
) -> None:
    """Speed to the plain loop, share of the GEMMs; equal losses where nothing is dropped out."""
    asked = ASKED[case] if backend == "auto" else 1.0
    speed = paired_ratio(taken[PLAIN], taken[backend])
    what = f"speed of {backend} to plain PyTorch"
    result.require(what, "times", speed, at_least=asked, axes=axes)
    share = paired_ratio(taken[GEMMS], taken[backend])
    what = f"GEMMs alone, share of {backend}'s step"
    result.require(what, "times", share, at_least=0.7, axes=axes)
    if not (CASES[case].input_dropout or CASES[case].output_dropout):
        pairs = zip(losses[PLAIN][:100], losses[backend], strict=False)
        apart = [abs(a - b) for a, b in pairs]
        what = f"losses of {backend} apart from plain PyTorch's, {len(apart)} steps"
        result.require(what, "nats a token", max(apart), at_most=SAME_LOSS, axes=axes)
