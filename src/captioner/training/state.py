"""What an exact resume needs besides the weights, as last.pt holds it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from captioner.errors import CheckpointError
from captioner.training.averaging import MovingAverage
from captioner.training.checkpoint import load_checkpoint, load_weights
from captioner.training.distributed import World
from captioner.training.optimisation import optimizer_state
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

    figures: dict[str, float]
    measured: dict[str, Any]
    weights: dict[str, Tensor]


@dataclass
class Progress:
    """How far a run is; all of it is in last.pt, and so is a `pending` validation."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    loss_sum: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    validations_since_best: int = 0
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    pending: Validation | None = None
    # Of the epoch's figures that an objective gives: a sum, and what it is to be divided by.
    sums: dict[str, list[float]] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """The objective's figures so far in the epoch."""
        return {name: total / max(1, count) for name, (total, count) in self.sums.items()}

    def stored(self) -> dict[str, Any]:
        """As a checkpoint holds it; tensors are not copied."""
        pending = None if self.pending is None else vars(self.pending)
        return {**vars(self), "pending": pending}

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> "Progress":
        """What `stored` gave; TypeError where it is of something else."""
        progress = cls(**stored)
        if stored.get("pending") is not None:
            progress.pending = Validation(**stored["pending"])
        return progress

    def turn(self) -> None:
        """The next epoch begins."""
        self.epoch += 1
        self.position, self.loss_sum, self.tokens, self.seconds = 0, 0.0, 0, 0.0
        self.sums = {}


@dataclass(frozen=True)
class RunState:
    """Everything of a run that changes with its steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    random: Randomness
    world: World

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

        Raises CheckpointError when it is damaged, or of another model, optimiser or kind.
        """
        checkpoint = load_checkpoint(path, device=str(device))
        training = checkpoint.training
        if training is None:
            raise CheckpointError(f"{path} holds weights only, no training state to resume from")
        load_weights(self.model, checkpoint.model, source=str(path))
        try:
            self.optimizer.load_state_dict(training["optimizer"])
            progress = Progress.restored(training["progress"])
            if isinstance(self.model, CarriesState):
                self.model.load_carried_state(self.world.own_streams(training["carried_state"]))
            states = [training, *training.get("other_ranks", [])]
            if self.world.rank < len(states):
                self.random.load(states[self.world.rank])
            else:  # a rank that had none draws other numbers
                self.world.draw_apart(step=progress.step)
            if self.average is not None:
                self.average.load(training["ema"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is of another optimiser or trainer: {error}") from error
        return progress
