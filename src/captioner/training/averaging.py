"""Averages of weights: over the steps of a run, and over checkpoints."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from captioner.errors import CheckpointError
from captioner.restore import Count
from captioner.training.checkpoint import Checkpoint, load_checkpoint


class AverageState(TypedDict):
    """What a `MovingAverage` continues from."""

    steps: Count
    average: dict[str, Tensor]


class MovingAverage:
    """The exponential moving average of a model's weights (Polyak & Juditsky 1992).

    After step t: average += (1 - d) (weights - average), d = min(decay, (1 + t) / (10 + t)), so
    that the first weights are soon forgotten. Buffers such as those of BatchNorm are averaged
    too, but for whole numbers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        # The parameters themselves: their memory may become another.
        live = model.state_dict(keep_vars=True)
        self._live = {k: v for k, v in live.items() if v.is_floating_point()}
        self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def share(self, step: int) -> float:
        """The part that the weights after step number `step` (from 1) have in the average."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        self.mix(self.share(self.steps))

    @torch.no_grad()
    def mix(self, share: float | Tensor) -> None:
        """Interpolate the average to the weights by `share`, a number or a Tensor [] on the GPU."""
        average, live = [*self._average.values()], [*self._live.values()]
        if isinstance(share, Tensor):
            torch._foreach_lerp_(average, live, [share.to(x.dtype) for x in live])
        else:
            torch._foreach_lerp_(average, live, share)

    def tensors(self) -> list[Tensor]:
        """The averages, which `mix` changes in place."""
        return [*self._average.values()]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the averaged weights."""
        raw = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        _overwrite(self._live, self._average)
        try:
            yield
        finally:
            _overwrite(self._live, raw)

    def state(self) -> AverageState:
        """What `load` needs."""
        return {"steps": self.steps, "average": self._average}

    def load(self, state: AverageState) -> None:
        """Continue from what `state` gave; ValueError where a tensor of it is missing or of another
        shape."""
        for name, own in self._average.items():
            stored = state["average"].get(name)
            if stored is None or stored.shape != own.shape:
                found = "missing" if stored is None else list(stored.shape)
                raise ValueError(f"the average of {name} is {found}, expected {list(own.shape)}")
        self.steps = state["steps"]
        _overwrite(self._average, state["average"])


@torch.no_grad()
def _overwrite(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def average_checkpoints(paths: Sequence[Path]) -> Checkpoint:
    """One model whose weights are the means of those of several checkpoints of one run.

    Sums are kept in float64. Raises CheckpointError where a file is damaged or of another model or
    vocabulary than the first.
    """
    first = load_checkpoint(paths[0])
    sums = {k: x.double() if x.is_floating_point() else x for k, x in first.model.items()}
    for path in paths[1:]:
        other = load_checkpoint(path)
        shapes, expected = (
            {name: (tensor.shape, tensor.dtype) for name, tensor in one.model.items()}
            for one in (other, first)
        )
        if shapes != expected or other.texts.get("vocabulary") != first.texts.get("vocabulary"):
            raise CheckpointError(f"{path} is not of the model and vocabulary of {paths[0]}")
        for name, tensor in other.model.items():
            if tensor.is_floating_point():
                sums[name] += tensor
    means = {
        name: (sums[name] / len(paths)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in first.model.items()
    }
    return Checkpoint(means, first.texts)
