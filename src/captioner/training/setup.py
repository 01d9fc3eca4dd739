"""What a training run is made of, and its settings."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from captioner.data.resident import ResidentCaptions
from captioner.training.step import Objective, StepSettings


class Order(Protocol):
    """The visiting order of the batches: set epoch and position, then iterate the loader."""

    epoch: int
    position: int

    def __len__(self) -> int:
        """Batches in an epoch."""


class Rungs(Protocol):
    """After which epochs a run is compared with others, and whether it then goes on."""

    def is_rung(self, epoch: int) -> bool:
        """Whether runs are compared after so many epochs."""

    def goes_on(self, epoch: int) -> bool:
        """Whether this one trains on; its history is written."""


class Score(Protocol):
    """Makes figures of what a validation measured, perhaps later, in another process."""

    def __call__(self, measured: dict[str, Any], *, at_once: bool) -> Future[dict[str, float]]:
        """The figures, which are waited for `at_once` or when they are needed."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """What is trained, on what, and what tells how good it is.

    `loader` gives an epoch's batches in the given `order`; `validate(step)` returns metrics, of
    which one is `settings.best_metric`, or what `score` makes them of: numbers, text and tensors,
    in dicts and lists; `texts` goes into every checkpoint as it is. With `data` on the device, of
    which `loader` then gives plans, steps are such as a CUDA graph can hold. In a world of several
    processes the loader gives a process's share of every batch, None for an empty one. An
    `objective` is what steps minimise in place of the batches' cross-entropy; `rungs` may end the
    run before its last epoch. `at_epoch` is called with an epoch's number, from 0, before the first
    of its steps that are taken.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: Iterable[Any]
    order: Order
    validate: Callable[[int], dict[str, Any]]
    texts: dict[str, str]
    score: Score | None = None
    data: ResidentCaptions | None = None
    objective: Objective | None = None
    rungs: Rungs | None = None
    at_epoch: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainerSettings(StepSettings):
    """Plain settings of the loop; `None` switches a thing off.

    epochs: passes over the data; best_metric is maximised unless `lower_is_better`; patience:
    validations without a better score before stopping; checkpoint_minutes, checkpoint_steps: how
    often last.pt is written inside an epoch (it always is at an epoch's end); log_steps: how often
    the loss is read, and a step's parts timed for timing.json; profile: write trace.json too; ema:
    decay of the moving average of the weights, which is then what is validated and kept as best.pt;
    keep_epochs: of how many epochs, counted from the last, the weights are kept as epoch_N.pt.
    """

    epochs: int
    best_metric: str = "BLEU-4"
    lower_is_better: bool = False
    patience: int | None = None
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int | None = None
    log_steps: int = 20
    profile: bool = False
    ema: float | None = None
    keep_epochs: int = 0
