"""One optimiser step, as a loop over batches takes it: forward, backward, clipping, update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from captioner.profiling import span
from captioner.training.averaging import MovingAverage
from captioner.training.distributed import World
from captioner.training.optimisation import clip_gradients, schedule_factor

Gradients = tuple[Tensor, int]  # of a step: the summed loss [] float64, and the tokens it is over


class Batch(Protocol):
    """What a step needs of a batch."""

    @property
    def model_inputs(self) -> tuple[Any, ...]:
        """The arguments of the model's `loss` before the targets."""

    @property
    def targets(self) -> Tensor:
        """The tokens to predict, [N]."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a step is taken: `accumulation` batches a step, clipping of the gradients by norm and by
    value, the learning rate's schedule, forward in bfloat16 autocast or in the weights' type.

    The learning rate is that of a step of `rate_tokens` tokens, and in proportion of others; None:
    of any step. Only `PlainStep` reads it.
    """

    accumulation: int = 1
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    bf16: bool = False
    rate_tokens: int | None = None

    def rate_factor(
        self, step: int, total_steps: int, group: Mapping[str, Any] | None = None
    ) -> float:
        """The learning rate's multiple at `step`, from 0; that of a parameter group, which may have
        a schedule of its own."""
        own = {**vars(self), **(group or {})}
        return schedule_factor(
            step,
            total_steps=total_steps,
            warmup_steps=own["warmup_steps"],
            schedule=own["schedule"],
        )


class WeightUpdate:
    """What follows the backward: gradients are clipped, weights changed, gradients released."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
        self.optimizer, self.settings = optimizer, settings
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self) -> None:
        """Update the weights by the gradients that they have."""
        with span("clipping"):
            clip_gradients(
                self.parameters, norm=self.settings.clip_norm, value=self.settings.clip_value
            )
        with span("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


@dataclass(kw_only=True, eq=False)
class TrainingStep:
    """What a step works on, however it gets its batches."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: StepSettings
    total_steps: int
    device: torch.device
    average: MovingAverage | None

    def __post_init__(self) -> None:
        self.update = WeightUpdate(self.optimizer, self.settings)


class Objective(Protocol):
    """What steps minimise the cross-entropy of, where it is not that of the captions they get."""

    def __call__(self, batch: Any) -> list[Any]:
        """Batches with weights, in place of one that lies on the device."""

    def figures(self) -> dict[str, tuple[float, float]]:
        """Of each figure a sum since the last call, and the number that it is to be divided by."""


@dataclass(kw_only=True, eq=False)
class PlainStep(TrainingStep):
    """Takes steps of `optimizer` over batches that the host makes, or an `objective` of them."""

    world: World
    objective: Objective | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.summed_loss = self.world.summed_loss(self.model)

    def prepare(self) -> None:
        """Called once the state that the run begins with is loaded."""

    def __call__(
        self, group: Sequence[Any], step: int, running: Tensor, found: Gradients | None = None
    ) -> int:
        """Step number `step` over a group of batches: adds this rank's summed loss to `running` []
        and returns the tokens of all ranks, over which the gradients are a mean. Where the weights
        have their gradients already, `found` says what else `gradients` would."""
        total, tokens = self.gradients(group) if found is None else found
        by_tokens = self.settings.rate_tokens
        for parameters in self.optimizer.param_groups:
            factor = self.settings.rate_factor(step, self.total_steps, parameters)
            if by_tokens is not None:
                factor *= tokens / by_tokens
            parameters["lr"] = parameters["base_lr"] * factor
        self.update()
        if self.average is not None:
            with span("average of the weights"):
                self.average.update()
        running += total
        return tokens

    def gradients(self, group: Sequence[Any]) -> Gradients:
        """Give the weights their gradients; this rank's summed loss [], the tokens of all ranks."""
        if self.objective is not None:
            group = [one for batch in group for one in self._in_place_of(batch, self.objective)]
        own = sum(batch.targets.numel() for batch in group if batch is not None)
        tokens = int(self.world.total(own)[0])
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, batch in enumerate(group, 1):
            with span("copy to the device"):
                batch = None if batch is None else batch.to(self.device)
            # The ranks' gradients are added up once, after the last batch of the step.
            with nullcontext() if number == len(group) else self.summed_loss.no_sync():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                    loss: Tensor = self.summed_loss(batch, self.settings.label_smoothing)
                with span("embedding and image, backward"):
                    # Divided by the size too: the ranks' gradients are averaged, not summed.
                    (loss / (tokens / self.world.size)).backward()
            total += loss.detach()
        return total, tokens

    def _in_place_of(self, batch: Any, objective: Objective) -> list[Any]:
        return [None] if batch is None else objective(batch.to(self.device))
