"""The training step captured as a CUDA graph, on a real GPU. Skipped, aloud, without one.

Needs nothing but torch, numpy and pytest.
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_runs import losses, make_trainer
from torch import Tensor

from captioner.errors import ConfigError
from captioner.ops import choose_backend
from captioner.training.graph_step import GraphStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda")


def backends() -> list[str]:
    try:
        choose_backend("persistent", "cuda")
    except ConfigError as error:
        logging.getLogger(__name__).warning("only cuDNN's LSTM is tried: %s", error)
        return ["torch"]
    return ["torch", "persistent"]


def trainer(folder: Path, backend: str, *, graph: bool = True, **settings: Any) -> Any:
    return make_trainer(folder, graph=graph, backend=backend, device=CUDA, bf16=True, **settings)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", [{}, {"by_image": True}, {"accumulation": 3, "ema": 0.9}])
def test_replays_give_the_curve_of_the_same_step_uncaptured(
    backend: str, case: dict[str, Any], tmp_path: Path
) -> None:
    eager, captured = (trainer(tmp_path, backend, epochs=60, **case) for _ in range(2))
    eager.step._run = eager.step.take
    expected, found = losses(eager, 100), losses(captured, 100)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-3, atol=0)
    assert isinstance(captured.step, GraphStep) and captured.step._run is not None


@pytest.mark.parametrize("backend", backends())
def test_replays_give_the_curve_of_the_plain_loop(backend: str, tmp_path: Path) -> None:
    plain = trainer(tmp_path, "torch", graph=False, epochs=60)
    captured = trainer(tmp_path, backend, epochs=60)
    torch.testing.assert_close(
        torch.tensor(losses(captured, 100)), torch.tensor(losses(plain, 100)), rtol=1e-2, atol=0
    )


def test_every_replay_drops_something_else(tmp_path: Path) -> None:
    one = trainer(tmp_path, "torch", dropout=0.5, epochs=9)
    for group in one.step.optimizer.param_groups:
        group["base_lr"] = 0.0
    one.step.rates_by_step.zero_()  # the weights stay, the batch too: only the masks differ
    batch = next(iter(one.loader))
    seen = set()
    for step in range(5):
        running = torch.zeros((), dtype=torch.float64, device=CUDA)
        one.step([batch], step, running)
        seen.add(float(running))
    assert len(seen) == 5


def test_capturing_leaves_no_trace(tmp_path: Path) -> None:
    """Weights, the optimiser's state and random numbers are those of a run that has not begun."""
    one = trainer(tmp_path, "torch", dropout=0.5, ema=0.9)
    weights = {name: x.clone() for name, x in one.model.state_dict().items()}
    random = torch.cuda.get_rng_state()
    one.step._run = one.step.capture()
    torch.cuda.synchronize()
    assert torch.equal(random, torch.cuda.get_rng_state())
    assert not one.step.loss.any()
    for name, x in one.model.state_dict().items():
        assert torch.equal(x, weights[name])
    for state in one.optimizer.state.values():
        assert all(not value.any() for value in state.values() if isinstance(value, Tensor))
    running = torch.zeros((), dtype=torch.float64, device=CUDA)
    one.step([next(iter(one.loader))], 1, running)
    assert float(running) > 0 and int(one.step.step_number) == 1


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_a_run_continues_where_it_was_stopped(optimizer: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer, "dropout": 0.3, "checkpoint_steps": 1}
    whole = trainer(tmp_path / "whole", "torch", **settings)
    whole.run()
    stopped = trainer(tmp_path / "stopped", "torch", **settings)
    stopped.loader = itertools.islice(iter(stopped.loader), 5)
    stopped.order.epoch = 0
    stopped.begin_epoch()
    for batch in stopped.loader:
        stopped.take([batch])
    again = trainer(tmp_path / "stopped", "torch", **settings)
    assert again.resume()
    again.run()
    for mine, theirs in zip(again.progress.history, whole.progress.history, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


def test_memory_is_flat(tmp_path: Path) -> None:
    one = trainer(tmp_path, "torch", epochs=500)
    losses(one, 100)
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    losses(one, 2000)
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == before
