"""The processes that train one model together, as torchrun starts them.

Only this file knows of process groups. One process alone is `World()`: then every method gives back
what it was given, and nothing is sent. Messages between the processes' hosts go through gloo; the
gradients are DistributedDataParallel's, through NCCL where they lie on GPUs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from captioner.errors import CaptionerError, ConfigError
from captioner.training.batch_norm import share_batch_norms, without_images

T = TypeVar("T")
R = TypeVar("R")
# Long: the others wait while rank 0 extracts features or scores. Who dies is noticed by the
# connections that break, not by a clock.
PATIENCE = timedelta(days=7)
MEETING = timedelta(minutes=10)  # all are started at once
_store: Store | None = None


@dataclass(frozen=True)
class World:
    """This process, `rank`, among the `size` that train together; rank 0 is the one that writes.

    What is called a collective below must be called by all of them, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's part of range(count); the ranks' parts are disjoint and make up all of it."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def total(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64. Collective."""
        if self.size == 1:
            return [*values]
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return summed.tolist()

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any rank. Collective."""
        return [value > 0 for value in self.total(*flags)]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on all of them. Collective."""
        found: list[Any] = [value]
        if self.size > 1:
            found = [None] * self.size
            dist.all_gather_object(found, value)
        return found

    def from_main(self, compute: Callable[[], T]) -> T:
        """What `compute` gives on rank 0, which alone calls it, on all ranks. Collective."""
        if self.size == 1:
            return compute()
        found: list[Any] = [compute() if self.main else None]
        dist.broadcast_object_list(found)
        return found[0]

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`function` of every item, in order, each computed by one rank. Collective."""
        mine = [function(items[k]) for k in self.share(len(items))]
        return [result for part in self.gather(mine) for result in part]

    def wait(self) -> None:
        """Wait until every rank has come here. Collective."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that rank 0 runs alone, then the others: what it stores, they find."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def gather_streams(self, state: Sequence[Tensor]) -> list[Tensor]:
        """The state of every rank's streams, each tensor [L, B, H], on the CPU. Collective."""
        parts = self.gather([one.cpu() for one in state])
        return [torch.cat(one, dim=1) for one in zip(*parts, strict=True)]

    def own_streams(self, state: Sequence[Tensor]) -> list[Tensor]:
        """This rank's part of what `gather_streams` gave."""
        return [one[:, list(self.share(one.shape[1]))] for one in state]

    def draw_apart(self, *, step: int) -> None:
        """Draw other random numbers than the other ranks."""
        # The run's seed, for the model was made from it; only different numbers are asked for.
        torch.manual_seed(torch.initial_seed() + 7919 * self.rank + 104_729 * step)

    def summed_loss(self, model: nn.Module) -> SummedLoss | DistributedDataParallel:
        """`SummedLoss` of the model; its gradients become the mean of all ranks'. Collective.

        The weights, which must be the same shapes everywhere, become rank 0's.
        """
        loss = SummedLoss(model)
        if self.size == 1:
            return loss
        # After a first step torch rebuilds its buckets, and reductions over three or more ranks are
        # then rounded differently: a resumed run would not end with the same bits. It keeps the
        # buckets where it looks for unused parameters, and does not warn where it finds one.
        loss.unused = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))
        on_gpu = next(model.parameters()).device.type == "cuda"
        gradients, statistics = (dist.new_group(backend="nccl" if on_gpu else "gloo") for _ in "gs")
        share_batch_norms(model, statistics)
        return DistributedDataParallel(
            loss, process_group=gradients, find_unused_parameters=True, gradient_as_bucket_view=True
        )


class SummedLoss(nn.Module):
    """A model's `loss` as a forward, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, label_smoothing: float, **settings: Any) -> Tensor:
        """The summed loss of a batch in nats; of None, a rank's empty share, 0 with gradients 0."""
        if batch is None:
            weights = (p for p in self.model.parameters() if p.requires_grad)
            return without_images(self.model) + torch.stack([0 * p.sum() for p in weights]).sum()
        settings["label_smoothing"] = label_smoothing
        if getattr(batch, "weights", None) is not None:  # which captions alone can have
            settings["weights"] = batch.weights
        loss: Tensor = self.model.loss(*batch.model_inputs, batch.targets, **settings)  # type: ignore[operator]
        return loss

    def no_sync(self) -> AbstractContextManager[None]:
        """As DistributedDataParallel has it; one process waits for no other."""
        return nullcontext()


def own_gpu(name: str) -> torch.device:
    """The GPU of this process, by its number on this machine; ConfigError if there are too few."""
    if name != "cuda":
        raise ConfigError(f"device={name} is one GPU for all processes; say device=cuda")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(f"process {number + 1} of this machine has no GPU: PyTorch sees {count}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


# -- joining and leaving ------------------------------------------------------------------------


def world() -> World:
    """The processes that this one has joined; World() while there are none."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[World]:
    """The processes that torchrun started, joined while the context is open.

    CaptionerError where they do not meet in time.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=MEETING))
    except (RuntimeError, ValueError) as error:  # torch's are of many kinds
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).strip().split("\n")[0]
        raise CaptionerError(
            f"the {os.environ['WORLD_SIZE']} processes of this run did not meet at {place} within "
            f"{MEETING.total_seconds():.0f} s: {reason}"
        ) from error
    join(store, rank=rank, size=size)
    yield world()
    dist.destroy_process_group()  # not after an error: the others would not answer


def join(store: Store, *, rank: int, size: int) -> None:
    """Join the processes that meet in `store`."""
    global _store
    _store = PrefixStore("captioner", store)
    dist.init_process_group(
        "gloo", store=PrefixStore("gloo", store), rank=rank, world_size=size, timeout=PATIENCE
    )


@contextmanager
def failing_once() -> Iterator[None]:
    """Let the first process that fails say why; the others, which only miss it, end silently.

    Raises CaptionerError where a process was missed that said nothing: it was killed.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if _store is None:
            raise
        if not _first_to_fail(_store):
            sys.exit(1)
        if isinstance(error, RuntimeError) and "peer" in str(error):
            raise CaptionerError(
                "another process of this run was killed, perhaps for lack of memory"
            ) from error
        raise


def _first_to_fail(store: Store) -> bool:
    try:
        return bool(store.add("failures", 1) == 1)
    except RuntimeError:  # rank 0 kept the store, and has gone
        return False
