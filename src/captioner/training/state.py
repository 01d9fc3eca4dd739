"""What an exact resume needs besides the weights, as last.pt holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor, nn

from captioner.errors import CheckpointError
from captioner.files import parse_json
from captioner.models.weights import check_tensors
from captioner.restore import Count, Figure, describe, restore
from captioner.training.averaging import AverageState, MovingAverage
from captioner.training.checkpoint import check_weights, load_checkpoint, load_weights
from captioner.training.distributed import World
from captioner.training.optimisation import load_optimizer_state, optimizer_state
from captioner.training.randomness import Randomness


@runtime_checkable
class CarriesState(Protocol):
    """A model that keeps a state from one batch to the next, which is no weight."""

    def carried_state(self) -> list[Tensor]:
        """What the next batch begins with."""

    def load_carried_state(self, state: list[Tensor]) -> None:
        """Continue from what `carried_state` gave."""


@dataclass
class Validation:
    """A validation whose scores have not been acted on: a resumed run computes them again.

    `figures` are the epoch's without its scores; `measured` is what the model gave, of which they
    are made; `weights` are those that were validated, which rank 0 alone keeps.
    """

    figures: dict[str, Figure]
    measured: dict[str, Any]
    weights: dict[str, Tensor]


@dataclass
class Progress:
    """How far a run is; all of it is in last.pt, and so is a `pending` validation."""

    step: Count = 0
    epoch: Count = 0
    position: Count = 0
    loss_sum: float = 0.0
    tokens: Count = 0
    seconds: float = 0.0
    best: float | None = None
    validations_since_best: Count = 0
    finished: bool = False
    history: list[dict[str, Figure]] = field(default_factory=list)
    pending: Validation | None = None
    # Of the epoch's figures that an objective gives: a sum, and what it is to be divided by.
    sums: dict[str, tuple[Figure, Figure]] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """The objective's figures so far in the epoch."""
        return {name: total / max(1, count) for name, (total, count) in self.sums.items()}

    def stored(self) -> dict[str, Any]:
        """As a checkpoint holds it; tensors are not copied."""
        pending = None if self.pending is None else vars(self.pending)
        return {**vars(self), "pending": pending}

    def turn(self) -> None:
        """The next epoch begins."""
        self.epoch += 1
        self.position, self.loss_sum, self.tokens, self.seconds = 0, 0.0, 0, 0.0
        self.sums = {}


class _Optimizer(TypedDict):
    state: dict
    param_groups: list[dict[str, Any]]


class _Training(TypedDict):
    optimizer: _Optimizer
    progress: Progress
    random_state: Tensor


class _StoredTraining(_Training, total=False):
    """The `training` of a checkpoint, in which not every run has everything."""

    cuda_random_state: Tensor
    other_ranks: list[dict[str, Tensor]]
    ema: AverageState
    carried_state: list[Tensor]


@dataclass(frozen=True)
class RunState:
    """Everything of a run that changes with its steps, and the `texts` that never do."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    random: Randomness
    world: World
    texts: Mapping[str, str]

    def gathered(self, progress: Progress) -> dict[str, Any]:
        """The `training` of a checkpoint. Collective."""
        own, *others = self.world.gather(self.random.state())
        training = {
            "optimizer": optimizer_state(self.optimizer),
            "progress": progress.stored(),
            **own,
        }
        if others:
            training["other_ranks"] = others
        if self.average is not None:
            training["ema"] = self.average.state()
        if isinstance(self.model, CarriesState):
            training["carried_state"] = self.world.gather_streams(self.model.carried_state())
        return training

    def load(self, path: Path, device: torch.device) -> Progress:
        """Continue from the checkpoint at `path`, which any number of processes may have written.

        Raises CheckpointError when it is damaged, or of another model, vocabulary, encoder,
        optimiser or kind.
        """
        checkpoint = load_checkpoint(path, device=str(device))
        if checkpoint.training is None:
            raise CheckpointError(f"{path} holds weights only, no training state to resume from")
        training: Any = restore(
            _StoredTraining, checkpoint.training, f"{path}: training", error=CheckpointError
        )
        self._check_texts(checkpoint.texts, path)
        load_weights(self.model, checkpoint.model, source=str(path))
        try:
            progress: Progress = training["progress"]
            if progress.pending is not None:  # whose weights may become best.pt
                check_tensors(progress.pending.weights, f"{path}: pending")
                check_weights(self.model, progress.pending.weights, source=f"{path}: pending")
            load_optimizer_state(self.optimizer, training["optimizer"], stepped=progress.step > 0)
            if isinstance(self.model, CarriesState):
                self.model.load_carried_state(self.world.own_streams(training["carried_state"]))
            states = [training, *training.get("other_ranks", [])]
            if self.world.rank < len(states):
                self.random.load(states[self.world.rank])
            else:  # a rank that had none draws other numbers
                self.world.draw_apart(step=progress.step)
            if self.average is not None:
                self.average.load(training["ema"])
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).split("\n")[0]  # torch's have many
            raise CheckpointError(f"{path} is of another optimiser or trainer: {reason}") from error
        return progress

    def _check_texts(self, stored: Mapping[str, str], path: Path) -> None:
        """The words that tokens stand for, and what made the features, are no weights: nothing else
        would notice that they are others."""
        for name in self.texts.keys() & stored.keys() - {"config"}:
            both = (
                parse_json(text, f"{path}: {name}") for text in (stored[name], self.texts[name])
            )
            before, now = (restore(dict[str, Any], one, f"{path}: {name}") for one in both)
            for key in before.keys() & now.keys():
                if before[key] != now[key]:
                    raise CheckpointError(
                        f"{path} is of another {name}: {key}: {_difference(before[key], now[key])}"
                    )


def _difference(before: Any, now: Any) -> str:
    """The first place in which two values differ, in words."""
    if isinstance(before, list) and isinstance(now, list):
        pairs = zip(before, now, strict=False)
        at = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
        if at is not None:
            return f"number {at} is {describe(before[at])} there and {describe(now[at])} here"
    return f"{describe(before)} there and {describe(now)} here"
