"""Capturing leaves no trace in a run: on the CPU, with CUDA's graphs replaced by a recording.

What is recorded is not executed, as in a capture, and is executed by a replay. That a GPU captures
what it should is for test_graph_capture.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_runs import epochs, losses, make_trainer
from torch import Tensor

from captioner.training.capture import WARM_UPS, CapturedCalls


class Recording:
    """In the place of torch.cuda.CUDAGraph: the calls that were made while it was captured."""

    open: Recording | None = None

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def pool(self) -> int:
        return 1

    def replay(self) -> None:
        for call in self.calls:
            call()


def kept_alive() -> list[Tensor]:
    """Every tensor that was computed from something with a gradient, and is still there.

    Since `recorded_graphs` began: what earlier tests have left behind is not looked through.
    """
    gc.collect()
    tensors = (x for x in gc.get_objects() if issubclass(type(x), Tensor))
    return [x for x in tensors if x.grad_fn is not None]


@contextmanager
def capturing(graph: Recording, **_: Any) -> Iterator[None]:
    # Its graph has nodes of another stream than the one that is captured: CUDA ends the capture.
    assert kept_alive() == []
    Recording.open = graph
    yield
    Recording.open = None


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


@pytest.fixture
def recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gc.freeze()
    for name, stand_in in {
        "CUDAGraph": Recording,
        "graph": capturing,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("recorded_graphs")
def test_a_tensor_with_a_graph_is_found() -> None:
    kept = [torch.ones(2, requires_grad=True) * 2]
    assert any(x is kept[0] for x in kept_alive())


def captured(trainer: Any, counts: dict[int, int]) -> CapturedCalls:
    step = trainer.step
    take = step.take

    def call(capacity: int) -> None:
        if Recording.open is not None:
            Recording.open.calls.append(lambda: take(capacity))
        else:
            counts[capacity] = counts.get(capacity, 0) + 1
            take(capacity)

    step.take = call
    calls: CapturedCalls = step.capture()
    step.take = take
    return calls


def everything(trainer: Any) -> list[Tensor]:
    return [x.detach().clone() for x in trainer.step._state()]


@pytest.mark.usefixtures("recorded_graphs")
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_warming_up_is_undone(optimizer: str, tmp_path: Path) -> None:
    """Also before the optimiser has any state."""
    trainer = make_trainer(tmp_path, graph=True, optimizer=optimizer, dropout=0.4, ema=0.9)
    before, random = everything(trainer), torch.get_rng_state()
    counts: dict[int, int] = {}
    captured(trainer, counts)
    assert counts == dict.fromkeys(trainer.step.data.capacities, WARM_UPS)
    assert all(map(torch.equal, before, everything(trainer)))
    assert torch.equal(random, torch.get_rng_state())
    states = trainer.optimizer.state.values()
    assert not any(x.any() for state in states for x in state.values() if isinstance(x, Tensor))


@pytest.mark.usefixtures("recorded_graphs")
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_replays_are_the_steps(optimizer: str, tmp_path: Path) -> None:
    """Bit for bit, dropout included, and captured again in the middle of the run."""
    plain, other = (
        make_trainer(tmp_path, graph=True, optimizer=optimizer, dropout=0.3, epochs=60)
        for _ in range(2)
    )
    torch.manual_seed(5)
    expected = losses(plain, 40)
    torch.manual_seed(5)
    other.model.train()
    found, groups = [], epochs(other)
    for step in range(40):
        group = next(groups)
        if step in (0, 21):
            other.step._run = captured(other, {})
        running = torch.zeros((), dtype=torch.float64)
        tokens = other.step(group, step, running)
        found.append(float(running) / tokens)
    assert found == expected
