"""suite=replicas: models that train in one process, beside one after another and a process each.

Time, memory and how far models come, in a training step alone: data, start-up and validation are
not in it. What one setting took lies under `folder`, where that is given, and is not measured again
when the suite is started again.

Letters: K models, B captions a batch (layered_attention: images), H hidden (= E embedding).
"""

import itertools
import math
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention import LAYERED, attention_training, draw_grids
from benchmarks.captions import endless
from benchmarks.epoch import WARM_UP, make_workload, start, take_in_turn
from benchmarks.memory import peak_bytes
from benchmarks.settings import AttentionBenchmark, ReplicasBenchmark
from benchmarks.suite import Axes, Run, SuiteResult, describe_machine, versions
from benchmarks.timing import Spread, paired_ratio, synchronize
from benchmarks.training import CASES, TimedSteps, Training
from benchmarks.worker import Worker
from captioner.data.dataset import BatchOrder
from captioner.files import read_json, write_json
from captioner.training.memory import keep_freed_memory
from captioner.training.randomness import OwnRandomness
from captioner.training.replicas import TURN, Replica, ReplicaTrainer
from captioner.training.reporting import Reporting
from captioner.training.setup import TrainingSetup
from captioner.training.trainer import Trainer

AIM = 0.7  # of the time that the models take one after another
ALONE, PROCESSES, TOGETHER = "one after another", "a process each", "replicas"
LAYERED_SIZE = 256  # H of the case that attends to a grid
SHARED = ("images", "grid_images", "feature_dim", "processes", "steps")  # settings of all cases


def replicas_suite(settings: ReplicasBenchmark, run: Run) -> SuiteResult:
    """Training steps of K models each way, taken in turn."""
    data = "synthetic" if run.data_root is None else "flickr8k"
    shared = {name: getattr(settings, name) for name in SHARED}
    cases: dict[str, Any] = {}
    result = SuiteResult({**shared, "data": data, "seed": run.seed, "cases": cases})
    with tempfile.TemporaryDirectory() as folder:
        for case, batch_size in itertools.product(settings.cases, settings.batch_sizes):
            training = _make_training(case, batch_size, settings, run, Path(folder))
            cases.setdefault(case, asdict(training.settings))
            for count in settings.replicas:
                size = training.settings.hidden_size
                axes: Axes = {"case": case, "K": count, "H": size, "B": batch_size}
                given = {**shared, **asdict(training.settings), "threads": torch.get_num_threads()}
                given |= {"data_root": run.data_root, "seed": run.seed, "repeats": run.repeats}
                given |= {"versions": versions(), "cpu": describe_machine(run.device)["cpu"]}
                measure = partial(_measure, count, training, settings, run)
                _add(result, axes, _kept(settings.folder, axes, given, measure))
    return result


def _make_training(
    case: str, batch_size: int, settings: ReplicasBenchmark, run: Run, folder: Path
) -> Training:
    """What each of the models trains, of a case of suite=epoch or of suite=attention."""
    if case != LAYERED:
        own = replace(CASES[case], batch_size=batch_size)
        return Training(workload=make_workload(settings, run), settings=own, device=run.device)
    sizes = AttentionBenchmark(
        images=settings.grid_images,
        feature_dim=settings.feature_dim,
        hidden_size=LAYERED_SIZE,
        batch_size=batch_size,
    )
    grids = draw_grids(folder, sizes, run.seed)
    return attention_training(f"{LAYERED} concat", sizes, run, grids)


def _kept(
    folder: str | None, axes: Axes, given: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `folder` has of the same measurement, or what it finds."""
    if folder is None:
        return measure()
    name = "{case}_H{H}_B{B}_K{K}".format(**axes)
    path = Path(folder) / f"{name}.json"
    if path.is_file():
        kept = read_json(path)
        if kept["given"] == given:
            return dict(kept["found"])
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"given": given, "found": found})
    return found


def _measure(
    count: int, training: Training, settings: ReplicasBenchmark, run: Run
) -> dict[str, Any]:
    """Of each way the seconds that a step of a model took in each repeat, and the peak of its
    processes' memory in bytes; how many steps are an epoch."""
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        ways: dict[str, Any] = {ALONE: start(stack, "auto", training)}
        if count <= settings.processes:
            ways[PROCESSES] = stack.enter_context(ProcessEach(count, training, threads=threads))
        ways[TOGETHER] = stack.enter_context(Worker(Replicas, count, training, threads=threads))
        taken = take_in_turn(ways, steps=settings.steps, repeats=run.repeats)
        peaks = {name: way.call("result")[1] for name, way in ways.items()}
    models = {name: 1 if name == ALONE else count for name in ways}
    seconds = {name: [x / models[name] for x in taken[name].values] for name in ways}
    return {"seconds": seconds, "bytes": peaks, "steps": training.steps_an_epoch}


def _add(result: SuiteResult, axes: Axes, found: dict[str, Any]) -> None:
    """The figures of K models."""
    taken = {name: Spread(tuple(values)) for name, values in found["seconds"].items()}
    for name, spread in taken.items():
        result.add("a step of a model", name, "ms", spread.map(lambda s: 1e3 * s), axes)
        epochs = spread.map(lambda s: 60 / (s * found["steps"]))
        result.add("epochs of a model in a minute", name, "epochs", epochs, axes)
        result.add("peak memory of all processes", name, "MB", found["bytes"][name] / 1e6, axes)
    if axes["K"] != 1:
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

    def call(self, method: str, *arguments: Any) -> Any:
        """`seconds` of so many steps of each: those a step of all; `result`: none, and the memory
        of all."""
        if method == "result":
            return None, sum(found[1] for found in self._call(method))
        (count,) = arguments
        started = time.perf_counter()
        self._call(method, count)
        return (time.perf_counter() - started) / count

    def _call(self, *arguments: Any) -> list[Any]:
        return [*self._pool.map(lambda worker: worker.call(*arguments), self._workers)]


class Replicas:
    """A group of replicas, taken a few steps at a time as ReplicaTrainer.run takes them."""

    def __init__(self, replicas: int, training: Training) -> None:
        if training.device.type == "cpu":
            keep_freed_memory()  # as scripts/train.py does
        order, self.device = training.order(), training.device
        self.group = ReplicaTrainer(
            [Replica(_make_trainer(training, order), {}) for _ in range(replicas)],
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
            self.group.take_turn((0, 0), [batches])
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
