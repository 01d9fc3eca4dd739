"""The whole training step in a form that one CUDA graph can hold.

From the gathering of the batch to the update nothing in it depends on what the host knows but the
room (data/resident.py): shapes are fixed, the learning rate and the average's share are looked up
on the device by a counter, the loss stays there. On CUDA the step is captured once a room and
replayed (training/capture.py); elsewhere the same code simply runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from captioner.profiling import listening
from captioner.training.averaging import MovingAverage
from captioner.training.capture import CapturedCalls
from captioner.training.distributed import World
from captioner.training.optimisation import take_rates_from_device
from captioner.training.step import PlainStep, StepSettings


class ResidentData(Protocol):
    """Data on the device, from which it gathers batches itself: see data/resident.py."""

    rooms: tuple[int, int]
    group: int  # batches of a step

    def gather(self, room: int) -> Any:
        """The next batch in the capacity form, its `tokens` [] on the device."""

    def state(self) -> list[Tensor]:
        """What `gather` changes."""

    def rest(self) -> None:
        """Let the batches of the next step be empty ones."""


class Planned(Protocol):
    """What the host knows of a batch that the device gathers."""

    @property
    def tokens(self) -> int:
        """How many there are to predict."""

    @property
    def room(self) -> int:
        """Which of the data's rooms it fits."""


class GraphStep(PlainStep):
    """Takes the same steps as PlainStep over batches that are gathered from `data`."""

    def __init__(
        self,
        data: ResidentData,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: StepSettings,
        device: torch.device,
        average: MovingAverage | None,
    ) -> None:
        super().__init__(
            model=model, optimizer=optimizer, settings=settings, device=device, average=average,
            world=World(),
        )  # fmt: skip
        self.data, self.model = data, model
        self.running = torch.zeros((), dtype=torch.float64, device=device)
        self.step_number = torch.zeros(1, dtype=torch.int64, device=device)
        steps = range(settings.total_steps)
        base = torch.tensor([group["base_lr"] for group in optimizer.param_groups]).double()
        factors = torch.tensor([settings.rate_factor(step) for step in steps]).double()
        self.rates_by_step = torch.outer(factors, base).float().to(device)  # [steps, groups]
        shares = [average.share(step + 1) for step in steps] if average is not None else []
        self.shares_by_step = torch.tensor(shares, device=device)
        self._counted = -1  # the step that the device's counter stands at
        self._run: Callable[[int], None] | None = None
        self.prepare()

    def prepare(self) -> None:
        """Make ready once the state that the run begins with is loaded."""
        self.rates = take_rates_from_device(self.optimizer, self.device)
        self._run = None

    def capture(self) -> CapturedCalls:
        """`take` captured, for all rooms. The batch that comes next may fit one of them only, so
        that warming up is done on batches of nobody."""
        position = [tensor.clone() for tensor in self.data.state()]
        self.data.rest()
        with listening(None):  # whose clock would be captured, too
            calls = CapturedCalls(
                self.take, self.data.rooms, state=self._state, optimizer=self.optimizer
            )
        for tensor, value in zip(self.data.state(), position, strict=True):
            tensor.copy_(value)
        return calls

    def _state(self) -> list[Tensor]:
        """What a step changes, besides the optimiser's state and the random numbers'."""
        averages = [] if self.average is None else self.average.tensors()
        own = [self.running, self.step_number, *self.data.state(), *self.rates]
        return [*self.model.parameters(), *self.model.buffers(), *averages, *own]

    def __call__(self, group: Sequence[Planned], step: int, running: Tensor) -> int:
        """Step number `step` over the next batches, of which `group` says what the host knows."""
        if step != self._counted:
            self.step_number.fill_(step)
        self._counted = step + 1
        if self._run is None:
            self._run = self.capture() if self.device.type == "cuda" else self.take
        self._run(max(batch.room for batch in group))
        if self.average is not None:
            self.average.steps += 1
        running += self.running
        return sum(batch.tokens for batch in group)

    def take(self, room: int) -> None:
        """A step over the next batches, each with room for so many tokens, all on the device."""
        batches = [self.data.gather(room) for _ in range(self.data.group)]
        tokens = torch.stack([batch.tokens for batch in batches]).sum().clamp(min=1)
        rates = self.rates_by_step.index_select(0, self.step_number).squeeze(0)
        for own, rate in zip(self.rates, rates.unbind(), strict=True):
            own.copy_(rate)
        self.running.zero_()
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                loss: Tensor = self.model.loss(  # type: ignore[operator]
                    *batch.model_inputs, batch.targets, capacity=True,
                    label_smoothing=self.settings.label_smoothing,
                )  # fmt: skip
            (loss / tokens.to(loss.dtype)).backward()
            self.running += loss.detach()
        self.update()
        if self.average is not None:
            self.average.mix(self.shares_by_step.index_select(0, self.step_number).squeeze(0))
        self.step_number += 1
