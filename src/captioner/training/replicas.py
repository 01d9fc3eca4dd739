"""Several models trained together in one process, on the same data.

Every replica is an ordinary trainer with a folder of its own. A batch is gathered once for all that
read the data in one order. On a CPU each thread has some of the replicas, its kernels
single-threaded; a GPU has all. Where their models can be one computation (`StackedModels`) and read
the same batches, one forward and one backward give all of these their gradients; otherwise whole
steps of one after another are taken.
"""

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner.errors import NumericsError
from captioner.files import atomic_write, write_json
from captioner.progress import Progress
from captioner.training.graph_step import GraphStep
from captioner.training.interrupt import Interruption
from captioner.training.setup import Order, TrainerSettings
from captioner.training.stacked import StackedModels, dropping, together
from captioner.training.stacked_graph import StackedGraphStep
from captioner.training.step import Batch
from captioner.training.trainer import Trainer

log = logging.getLogger(__name__)
# Steps that a replica takes at a time: its weights stay in the thread's cache, and threads seldom
# wait for one another.
TURN = 8


@dataclass
class Replica:
    """A trainer and the settings in which it differs (key -> value); `failure` ends it alone."""

    trainer: Trainer
    differs: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and position of the batch that comes next."""
        return self.trainer.progress.epoch, self.trainer.progress.position

    @property
    def active(self) -> bool:
        """Whether it still trains."""
        return self.failure is None and not self.trainer.progress.finished

    def guarded(self, work: Callable[["Replica"], object]) -> None:
        """Do its work; NumericsError ends it alone."""
        try:
            work(self)
        except NumericsError as error:
            self.failure = str(error)
            log.warning("%s is left out: %s", self.trainer.reporting.name, error)


@dataclass
class Feed:
    """Batches in one order, and the replicas that read them."""

    order: Order
    loader: Iterable[Batch]
    replicas: list[Replica] = field(default_factory=list)

    def batches(self, epoch: int, position: int) -> Iterator[Batch]:
        """The epoch's from a position on; none where no replica is left."""
        self.order.epoch, self.order.position = epoch, position
        return iter(self.loader if any(one.active for one in self.replicas) else ())


Group = tuple[tuple[int, int], list[Batch]]  # the batches of a step, and the place of the first


class _Part:
    """Replicas whose models one thread computes together.

    Those that are behind the others after a kill, be it one, are computed so too, and end with the
    bits that they would have had.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas
        self._stacked: list[Replica] = []
        self._models: StackedModels | None = None
        self._graph: StackedGraphStep | None = None

    @property
    def order(self) -> Order:
        """Of the batches that its replicas read."""
        return self.replicas[0].trainer.order

    def take(self, groups: Sequence[Group]) -> None:
        """A step over each group of batches, by the replicas that are at its place."""
        for place, group in groups:
            replicas = [one for one in self.replicas if one.active and one.place == place]
            if not replicas:
                continue
            models = self._stack(replicas)
            losses, tokens = self._compute(models, replicas[0].trainer, group)
            for replica, loss in zip(replicas, losses, strict=True):
                update = partial(Trainer.take, group=group, found=(loss, tokens))
                replica.guarded(lambda one, update=update: update(one.trainer))  # type: ignore[misc]
            models.release()

    def _compute(
        self, models: StackedModels, first: Trainer, group: Sequence[Any]
    ) -> tuple[Sequence[Tensor], int]:
        """Gradients of a step, or where it is one graph the whole step: losses and tokens."""
        if self._graph is not None:
            return self._graph(group, first.progress.step)
        settings = first.settings
        return models.gradients(group, settings.label_smoothing, bf16=settings.bf16)

    def dissolve(self) -> None:
        """Give the models memory of their own again."""
        if self._models is not None:
            self._models.part()

    def _stack(self, replicas: list[Replica]) -> StackedModels:
        if self._models is None or replicas != self._stacked:
            self.dissolve()
            trainers = [one.trainer for one in replicas]
            generators = [one.random.on_device() for one in trainers]
            self._models = StackedModels([one.model for one in trainers], generators)
            steps = [one.step for one in trainers if isinstance(one.step, GraphStep)]
            self._graph = StackedGraphStep(steps, self._models, generators) if steps else None
            self._stacked = replicas
        return self._models


class ReplicaTrainer:
    """Trains `replicas`, each on the batches of its trainer: those whose trainers have one order in
    common read the same.

    A replica whose loss or weights are no longer finite is left out from there on, and one may stop
    early; the others continue. Where they have a `folder` in common, the best by dev score becomes
    best.pt there, and replicas.json says how each ended. On a CPU as many train at a time as torch
    has threads, more where a thread computes several together; on a GPU all are computed together,
    or take their steps one after another.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        folder: Path | None = None,
        device: torch.device,
        show_progress: bool = True,
    ) -> None:
        self.replicas, self.folder, self.show_progress = replicas, folder, show_progress
        feeds: dict[int, Feed] = {}
        for one in replicas:
            feed = Feed(one.trainer.order, one.trainer.loader)
            feeds.setdefault(id(feed.order), feed).replicas.append(one)
        self.feeds = [*feeds.values()]
        self.on_cpu = device.type == "cpu"
        self.threads = torch.get_num_threads() if self.on_cpu else 1
        self._pool = ThreadPoolExecutor(self.threads, initializer=self._begin_thread)
        self._why_turns: str | None = None  # None before the first step
        self._parts: list[_Part] = []

    @property
    def settings(self) -> TrainerSettings:
        """Of the loop, which are the same for all."""
        return self.replicas[0].trainer.settings

    def resume(self) -> bool:
        """Continue each replica from its last.pt, wherever it stands; whether there was one."""
        found = [replica.trainer.resume() for replica in self.replicas]
        return any(found)

    def run(self) -> list[dict[str, float]]:
        """Train all to the end; the figures of every epoch of each, with the replica's number.

        Raises KeyboardInterrupt after saving when a signal asked to stop, NumericsError when no
        replica is left.
        """
        with (
            self._bar() as self._shown,
            self._pool,
            Interruption() as interruption,
            ExitStack() as writers,
        ):
            for replica in self.replicas:
                writers.enter_context(replica.trainer.writer)
            while self._goes_on():
                self._train_epoch(interruption)
                self._in_threads(self._at_the_end(), lambda one: one.trainer.finish_epoch())
                if self.folder is not None:
                    self._keep_best(self.folder)
                if interruption.requested:
                    raise KeyboardInterrupt
        if all(replica.failure for replica in self.replicas):
            raise NumericsError(f"no replica is left: {self.replicas[0].failure}")
        return [
            {"replica": number, **figures}
            for number, replica in enumerate(self.replicas)
            for figures in replica.trainer.progress.history
        ]

    def _begin_thread(self) -> None:
        if self.on_cpu:
            torch.set_num_threads(1)  # of this thread's operations

    def _bar(self) -> Progress:
        trainers = [replica.trainer for replica in self.replicas]
        self._done = sum(one.progress.step for one in trainers)
        total = sum(one.total_steps for one in trainers)
        return Progress(total, done=self._done, show=self.show_progress)

    def _active(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.active]

    def _goes_on(self) -> bool:
        """Whether any replica still trains, once those that come next are compared with others:
        all of them have come as far."""
        if active := self._active():
            following = min(one.place for one in active)
            for replica in active:
                if replica.place == following:
                    replica.trainer.goes_on()
        return bool(self._active())

    def _at_the_end(self) -> list[Replica]:
        return [one for one in self._active() if one.place[1] == len(one.trainer.order)]

    def _train_epoch(self, interruption: Interruption) -> None:
        """Take the remaining steps of the epoch that the last replica is in.

        After a kill some replicas may have saved later than others: these wait for the batch that
        they have not seen.
        """
        epoch, position = min(replica.place for replica in self._active())
        batches = [feed.batches(epoch, position) for feed in self.feeds]
        for replica in self._active():
            replica.trainer.begin_epoch()
        # All batches of a turn are in memory: of many orders fewer each.
        most = max(2, TURN // len(self.feeds)) * self.settings.accumulation
        while any(turn := [list(islice(one, most)) for one in batches]):
            self.take_turn((epoch, position), turn)
            position += max(map(len, turn))
            self._show()
            if interruption.requested:
                self._in_threads(self._active(), lambda one: one.trainer.stop())
                raise KeyboardInterrupt
        self._in_threads(self._at_the_end(), lambda one: one.trainer.save())

    def take_turn(self, place: tuple[int, int], turn: Sequence[Sequence[Batch]]) -> None:
        """Several steps of every replica over the batches of its feed, those of each of `feeds` in
        `turn`; the first of them is at `place`."""
        groups = {
            id(feed.order): self._groups(place, batches)
            for feed, batches in zip(self.feeds, turn, strict=True)
        }

        def take(replica: Replica) -> None:
            for own_place, group in groups[id(replica.trainer.order)]:
                if replica.place == own_place:
                    replica.trainer.take(group)

        if self._why_turns is None:
            self._why_turns = self._find_why_turns()
        if self._why_turns:
            self._in_threads(self._active(), take)
        else:
            parts = self._divide()
            taken = self._pool.map(lambda part: part.take(groups[id(part.order)]), parts)
            list(taken)  # waits for all

    def _groups(self, place: tuple[int, int], batches: Sequence[Batch]) -> list[Group]:
        """Those of each step, and where they are."""
        (epoch, position), size = place, self.settings.accumulation
        return [
            ((epoch, position + start), list(batches[start : start + size]))
            for start in range(0, len(batches), size)
        ]

    def _find_why_turns(self) -> str:
        """Why the replicas take turns; empty where models are computed together."""
        count = len(self.replicas)
        if count <= self.threads:  # together they would leave threads idle
            return f"there is a thread for each of {count}"
        try:
            if self.settings.bf16 and self.on_cpu:
                raise ValueError("autocast has no form for several models")
            if len(self.feeds) == count:
                raise ValueError("each reads the batches in an order of its own")
            for alike in self._alike(self.replicas):
                together([one.trainer.model for one in alike])
        except ValueError as error:
            log.info("%d replicas take turns: %s", count, error)
            return str(error)
        log.info(
            "%d replicas, those of a thread as one computation: %d threads", count, self.threads
        )
        return ""

    def _divide(self) -> list["_Part"]:
        """The replicas that still train, in parts for the threads."""
        groups = self._alike(self._active())
        before = [one for part in self._parts for one in part.replicas]
        active = [*itertools.chain(*groups)]
        if active != before:
            for part in self._parts:
                part.dissolve()
            self._parts = []
            for alike in groups:
                # About a part for each thread, of all groups.
                share = round(self.threads * len(alike) / len(active))
                count = max(1, min(share, len(alike)))
                bounds = [k * len(alike) // count for k in range(count + 1)]
                self._parts += [_Part(alike[a:b]) for a, b in itertools.pairwise(bounds)]
        return self._parts

    @staticmethod
    def _alike(replicas: Sequence[Replica]) -> list[list[Replica]]:
        """Replicas by the batches that they read and by what their models compute."""
        groups: dict[Any, list[Replica]] = {}
        for one in replicas:
            key = id(one.trainer.order), dropping(one.trainer.model)
            groups.setdefault(key, []).append(one)
        return [*groups.values()]

    def _in_threads(self, replicas: Sequence[Replica], work: Callable[[Replica], None]) -> None:
        """Do the work of each in a thread of the pool; NumericsError ends that replica alone."""
        list(self._pool.map(lambda one: one.guarded(work), replicas))  # waits for all

    def _show(self) -> None:
        done = sum(replica.trainer.progress.step for replica in self.replicas)
        self._shown.update(done - self._done)
        self._done = done
        losses = [
            one.trainer.progress.loss_sum / one.trainer.progress.tokens
            for one in self._active()
            if one.trainer.progress.tokens
        ]
        if losses:
            self._shown.tell(f"losses {min(losses):.3f} to {max(losses):.3f}")

    # -- results ------------------------------------------------------------------------------

    def best(self) -> Replica | None:
        """The replica with the best dev score so far, the first of equals."""
        scored = [one for one in self.replicas if one.trainer.progress.best is not None]
        sign = -1 if self.settings.lower_is_better else 1
        return max(
            scored, key=lambda one: sign * float(one.trainer.progress.best or 0), default=None
        )

    def _keep_best(self, folder: Path) -> None:
        """Write replicas.json, and best.pt of the best replica beside it."""
        best = self.best()
        name = self.settings.best_metric
        rows = [
            {
                "folder": replica.trainer.folder.name,
                **replica.differs,
                f"best {name}": replica.trainer.progress.best,
                "epochs": replica.trainer.progress.epoch,
                "failure": replica.failure,
            }
            for replica in self.replicas
        ]
        if best is not None:
            best.trainer.writer.finish()
            kept = best.trainer.folder / "best.pt"
            with kept.open("rb") as source, atomic_write(folder / "best.pt") as copy:
                shutil.copyfileobj(source, copy)
            score, whose = best.trainer.progress.best, best.trainer.reporting.name
            log.info("best %s so far: %.4g of %s", name, score, whose)
        write_json(
            folder / "replicas.json",
            {"best": None if best is None else best.trainer.folder.name, "replicas": rows},
        )
