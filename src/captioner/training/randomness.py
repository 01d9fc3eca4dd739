"""Where a run's random numbers come from, and how their state is saved and restored."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from captioner.ops.dropout import drawing_from


class Randomness:
    """torch's own generators, from which a run that is alone in its process draws."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.default_generator

    def state(self) -> dict[str, Tensor]:
        """What `load` needs to continue with the same numbers."""
        states = {"random_state": self.generator.get_state()}
        if self.device.type == "cuda":
            states["cuda_random_state"] = self._cuda_state()
        return states

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` gave; KeyError where something of it is missing."""
        self.generator.set_state(state["random_state"].cpu())
        if self.device.type == "cuda":
            self._load_cuda_state(state["cuda_random_state"].cpu())

    def on_device(self) -> torch.Generator:
        """The generator that draws on the run's device; on a GPU for a run with its own alone."""
        return self.generator

    def used(self) -> AbstractContextManager[None]:
        """A context around whatever draws for the run."""
        return nullcontext()

    def _cuda_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device)

    def _load_cuda_state(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(state, self.device)


class OwnRandomness(Randomness):
    """Numbers of a generator of the run's own, which begins in the state of torch's.

    So a replica's dropout draws what it would draw alone. On a CPU any number of threads may draw
    at the same time; on a GPU the runs take turns with torch's one generator, each in the state of
    its own there. Models that are computed together draw from those directly.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.generator = torch.Generator()
        self._on_device = torch.Generator(device) if device.type == "cuda" else self.generator
        self.load(Randomness(device).state())

    def on_device(self) -> torch.Generator:
        """The generator that draws on the run's device."""
        return self._on_device

    def _cuda_state(self) -> Tensor:
        return self._on_device.get_state()

    def _load_cuda_state(self, state: Tensor) -> None:
        self._on_device.set_state(state)

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context around whatever draws for the run."""
        with drawing_from(self.generator):
            if self.device.type != "cuda":
                yield
                return
            others = torch.cuda.get_rng_state(self.device)
            torch.cuda.set_rng_state(self._on_device.get_state(), self.device)
            try:
                yield
            finally:
                self._on_device.set_state(torch.cuda.get_rng_state(self.device))
                torch.cuda.set_rng_state(others, self.device)
