"""The training step in a form that one CUDA graph can hold.

What is captured is `GraphStep.take`: a function of static buffers (`rows`, the dataset rows of the
step's batches, and `step_number`), which the host writes before each step. Shapes are fixed but for
the token capacity, by which there is a graph each; the learning rate is looked up on the device,
and the loss stays there. On CUDA the function is captured and replayed (training/capture.py);
elsewhere it is called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.data.resident import PlannedBatch, ResidentCaptions, StaticBatch
from captioner.profiling import listening
from captioner.training.capture import CapturedCalls
from captioner.training.optimisation import take_rates_from_device
from captioner.training.step import Gradients, TrainingStep


@dataclass(eq=False)
class GraphStep(TrainingStep):
    """Takes the same steps as PlainStep over batches that are gathered from `data`."""

    data: ResidentCaptions

    def __post_init__(self) -> None:
        super().__post_init__()
        data, settings, device, average = self.data, self.settings, self.device, self.average
        shape = (settings.accumulation, data.batch_size)
        self.rows = torch.full(shape, data.padding_row, dtype=torch.int64, device=device)
        self.step_number = torch.zeros(1, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)  # of the last step
        base = torch.tensor([group["base_lr"] for group in self.optimizer.param_groups]).double()
        steps = range(self.total_steps)
        factors = torch.tensor([settings.rate_factor(k, self.total_steps) for k in steps]).double()
        self.rates_by_step = torch.outer(factors, base).float().to(device)  # [steps, groups]
        shares = [average.share(step + 1) for step in steps] if average is not None else []
        self.shares_by_step = torch.tensor(shares, device=device)
        self.prepare()

    def prepare(self) -> None:
        """Called once the state that the run begins with is loaded."""
        self.rates = take_rates_from_device(self.optimizer, self.device)
        self._run: Callable[[int], None] | None = None

    def capture(self) -> CapturedCalls:
        """`take` captured for all capacities, warmed up on dummy batches."""
        self.write_inputs([], step=0)
        with listening(None):  # whose clock would be captured, too
            return CapturedCalls(
                self.take, self.data.capacities, state=self.state(), optimizers=[self.optimizer]
            )

    def state(self) -> list[Tensor]:
        """What a step changes, besides the optimiser's state and the random numbers'."""
        averages = [] if self.average is None else self.average.tensors()
        own = [*averages, *self.rates, self.loss]
        return [*self.model.parameters(), *self.model.buffers(), *own]

    def write_inputs(self, group: Sequence[PlannedBatch], step: int) -> None:
        """Write the static buffers; dummy batches fill up a group."""
        self.step_number.fill_(step)
        for rows, batch in zip(self.rows, group, strict=False):
            rows.copy_(batch.rows)
        self.rows[len(group) :].fill_(self.data.padding_row)

    def __call__(
        self,
        group: Sequence[PlannedBatch],
        step: int,
        running: Tensor,
        found: Gradients | None = None,
    ) -> int:
        """Step number `step` over `group`: adds its summed loss to `running` [] and returns its
        tokens, over which the gradients are a mean. `found`: these of a step that is taken already
        (training/stacked_graph.py)."""
        if found is None:
            if self._run is None:
                self._run = self.capture() if self.device.type == "cuda" else self.take
            self.write_inputs(group, step)
            self._run(max(batch.capacity for batch in group))
            found = self.loss, sum(batch.tokens for batch in group)
        if self.average is not None:
            self.average.steps += 1
        running += found[0]
        return found[1]

    def take(self, capacity: int) -> None:
        """A step over the rows in the static buffers, each batch with `capacity`; nothing is read
        from the device."""
        batches, tokens = self.gather(capacity)
        self.loss.zero_()
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                loss: Tensor = self.model.loss(  # type: ignore[operator]
                    *batch.model_inputs,
                    batch.targets,
                    capacity=True,
                    label_smoothing=self.settings.label_smoothing,
                )
            (loss / tokens.to(loss.dtype)).backward()
            self.loss += loss.detach()
        self.finish()

    def gather(self, capacity: int) -> tuple[list[StaticBatch], Tensor]:
        """The batches of the rows in the static buffers, and their tokens []."""
        batches = [self.data.gather(rows, capacity) for rows in self.rows]
        return batches, torch.stack([batch.tokens for batch in batches]).sum().clamp(min=1)

    def finish(self) -> None:
        """What follows the backward, by the step number in its static buffer."""
        rates = self.rates_by_step.index_select(0, self.step_number).squeeze(0)
        for own, rate in zip(self.rates, rates.unbind(), strict=True):
            own.copy_(rate)
        self.update()
        if self.average is not None:
            self.average.mix(self.shares_by_step.index_select(0, self.step_number).squeeze(0))
