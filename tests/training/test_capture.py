"""Capturing leaves no trace in a run: on the CPU, with CUDA's graphs replaced by a recording.

What is recorded is not executed, as in a capture, and is executed by a replay. That a GPU captures
what it should is for test_graph_capture.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graph_runs import epochs, losses, make_trainer
from recorded_graphs import kept_alive, recording_call
from torch import Tensor

from captioner.training.capture import WARM_UPS, CapturedCalls


@pytest.mark.usefixtures("recorded_graphs")
def test_a_tensor_with_a_graph_is_found() -> None:
    kept = [torch.ones(2, requires_grad=True) * 2]
    assert any(x is kept[0] for x in kept_alive())


def captured(trainer: Any, counts: dict[int, int]) -> CapturedCalls:
    step = trainer.step
    take = step.take
    step.take = recording_call(take, counts)
    calls: CapturedCalls = step.capture()
    step.take = take
    return calls


def everything(trainer: Any) -> list[Tensor]:
    return [x.detach().clone() for x in trainer.step.state()]


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
