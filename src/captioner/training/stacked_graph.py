"""A step of K models that are computed together, in a form that one CUDA graph can hold.

As training/graph_step.py of one model: what is captured is `StackedGraphStep.take`, a function of
the static buffers of its models' own steps. The batch is gathered once.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captioner.data.resident import PlannedBatch
from captioner.profiling import listening
from captioner.training.capture import CapturedCalls
from captioner.training.graph_step import GraphStep
from captioner.training.stacked import StackedModels


class StackedGraphStep:
    """The steps of `models`, each of which has its own of `steps` over the same data; random
    numbers come from `generators`."""

    def __init__(
        self,
        steps: Sequence[GraphStep],
        models: StackedModels,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.steps, self.models, self.generators = steps, models, generators
        self.device = steps[0].device
        self.losses = torch.zeros(len(steps), dtype=torch.float64, device=self.device)
        self._run: Callable[[int], None] | None = None

    def __call__(self, group: Sequence[PlannedBatch], step: int) -> tuple[Sequence[Tensor], int]:
        """Take step number `step` of every model over `group`: the summed losses, K times [], and
        the tokens."""
        if self._run is None:
            self._run = self.capture() if self.device.type == "cuda" else self.take
        self._write_inputs(group, step)
        self._run(max(batch.capacity for batch in group))
        return self.losses.unbind(), sum(batch.tokens for batch in group)

    def capture(self) -> CapturedCalls:
        """`take` captured for all capacities, warmed up on dummy batches."""
        self._write_inputs([], step=0)
        with listening(None):  # whose clock would be captured, too
            return CapturedCalls(
                self.take,
                self.steps[0].data.capacities,
                state=self.state(),
                optimizers=[step.optimizer for step in self.steps],
                generators=self.generators,
            )

    def state(self) -> list[Tensor]:
        """What a step changes, besides the states of optimisers and random numbers."""
        return [self.losses, *(tensor for step in self.steps for tensor in step.state())]

    def take(self, capacity: int) -> None:
        """A step of every model; nothing is read from the device."""
        batches, tokens = self.steps[0].gather(capacity)
        settings = self.steps[0].settings
        self.losses.zero_()
        for batch in batches:
            losses = self.models.losses(
                batch, settings.label_smoothing, bf16=settings.bf16, capacity=True
            )
            (losses / tokens.to(losses.dtype)).sum().backward()
            self.losses += losses.detach()
        self.models.hand_out()
        for step in self.steps:
            step.finish()
        self.models.release()

    def _write_inputs(self, group: Sequence[PlannedBatch], step: int) -> None:
        self.steps[0].write_inputs(group, step)
        for other in self.steps[1:]:
            other.step_number.fill_(step)
