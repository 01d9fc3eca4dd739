"""Averaged weights: the formula, what is validated and kept, and an exact resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError
from captioner.training.averaging import MovingAverage, average_checkpoints
from captioner.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.training.test_replicas import Loader, make_order, make_trainer


def test_the_moving_average_is_the_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = MovingAverage(model, 0.5)
    expected = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
    for step in range(1, 13):
        for tensor in (*model.parameters(), model[1].running_mean):
            tensor.data.normal_()
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in expected.items():
            value.mul_(decay).add_(model.state_dict()[name], alpha=1 - decay)
    raw = {k: v.clone() for k, v in model.state_dict().items()}
    with average.in_place():
        for name, value in expected.items():
            torch.testing.assert_close(model.state_dict()[name], value)
    for name, value in raw.items():
        assert torch.equal(model.state_dict()[name], value)


def trainer_in(folder: Path, act: object = None, at: int = -1, **settings: object):  # type: ignore[no-untyped-def]
    order = make_order()
    return make_trainer(
        folder, 1, 1e-2, 0.3, own=False, order=order, loader=Loader(order, at, act), **settings
    )


def test_the_average_is_validated_and_kept_and_the_raw_weights_continue(tmp_path: Path) -> None:
    trainer_in(tmp_path / "ema", ema=0.9).run()
    trainer_in(tmp_path / "plain").run()
    last = load_checkpoint(tmp_path / "ema" / "last.pt").model
    for name, value in load_checkpoint(tmp_path / "plain" / "last.pt").model.items():
        assert torch.equal(last[name], value)
    best = load_checkpoint(tmp_path / "ema" / "best.pt")
    assert any(not torch.equal(best.model[name], last[name]) for name in last)
    kept = sum(float(tensor.abs().sum()) for tensor in best.model.values())
    assert best.scores["loss"] == pytest.approx(kept)


def test_a_resume_continues_with_the_same_average(tmp_path: Path) -> None:
    def kill() -> None:
        raise RuntimeError("killed")

    whole = trainer_in(tmp_path / "whole", ema=0.9)
    whole.run()
    killed = trainer_in(tmp_path / "killed", act=kill, at=18, ema=0.9, checkpoint_steps=4)
    with pytest.raises(RuntimeError, match="killed"):
        killed.run()
    resumed = trainer_in(tmp_path / "killed", ema=0.9)
    assert resumed.resume()
    resumed.run()
    states = [one.average.state() for one in (whole, resumed)]
    assert states[0]["steps"] == states[1]["steps"] == 26
    for name, value in states[0]["average"].items():
        assert torch.equal(states[1]["average"][name], value)


def test_the_last_epochs_are_kept_and_their_mean_is_a_checkpoint(tmp_path: Path) -> None:
    trainer_in(tmp_path, epochs=4, keep_epochs=2).run()
    paths = sorted(tmp_path.glob("epoch_*.pt"))
    assert [path.name for path in paths] == ["epoch_3.pt", "epoch_4.pt"]
    found = average_checkpoints(paths).model
    a, b = (load_checkpoint(path).model for path in paths)
    for name, value in found.items():
        torch.testing.assert_close(value, ((a[name].double() + b[name]) / 2).float())


def test_other_models_and_vocabularies_have_no_mean(tmp_path: Path) -> None:
    for name, size, words in (("a", 2, "xy"), ("b", 3, "xy"), ("c", 2, "xz")):
        vocabulary = Vocabulary([*words], counts=[1] * 6)
        weights = {"w": torch.zeros(size)}
        save_checkpoint(tmp_path / name, Checkpoint(weights, {"vocabulary": vocabulary.to_json()}))
    for other in "bc":
        with pytest.raises(CheckpointError, match=f"{other} is not of the model"):
            average_checkpoints([tmp_path / "a", tmp_path / other])
