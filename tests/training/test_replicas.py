"""Models trained together: each as it would alone, and one that fails takes no other down."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioner.data.dataset import BatchOrder
from captioner.errors import NumericsError
from captioner.models.activation_regularisation import ActivationRegularisation
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.models.stream import StreamModel
from captioner.training import replicas as trained_together
from captioner.training.checkpoint import load_checkpoint
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.randomness import OwnRandomness
from captioner.training.replicas import Replica, ReplicaTrainer
from captioner.training.reporting import Reporting
from captioner.training.setup import TrainerSettings, TrainingSetup
from captioner.training.stacked import StackedModels
from captioner.training.step import PlainStep
from captioner.training.trainer import Trainer

CPU = torch.device("cpu")
SETTINGS = ((1, 1e-2, 0.0), (2, 3e-3, 0.3), (3, 2e-2, 0.5))  # seed, lr, dropout
V, B, T = 11, 4, 5


class Windows:
    """A batch of equal windows of a stream."""

    def __init__(self, tokens: Tensor) -> None:
        self.targets = tokens[1:].flatten()
        rows = torch.arange(B)
        self.model_inputs = (tokens[:-1].flatten(), torch.full((T,), B), rows, rows)

    def to(self, device: torch.device) -> Windows:
        return self


class Loader:
    """Gives the order's batches; `at` counts them and acts just before that one."""

    def __init__(self, order: BatchOrder, at: int = -1, act: Any = None) -> None:
        drawn = torch.Generator().manual_seed(4)
        self.tokens = torch.randint(V, (len(order), T + 1, B), generator=drawn)
        self.order, self.at, self.act, self.given = order, at, act, 0

    def __iter__(self) -> Iterator[Windows]:
        for rows in self.order:
            if self.given == self.at:
                self.act()
            self.given += 1
            yield Windows(self.tokens[rows[0]])


def make_order(seed: int = 7) -> BatchOrder:
    return BatchOrder(13, batch_size=1, seed=seed)


def make_trainer(
    folder: Path,
    seed: int,
    lr: float,
    dropout: float,
    *,
    own: bool,
    order: BatchOrder,
    loader: Loader,
    kind: str = "lstm",
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Trainer:
    torch.manual_seed(seed)
    model = StreamModel(
        LanguageModel(
            vocab_size=V,
            embedding_dim=6,
            hidden_size=8,
            num_layers=2,
            dropout=DropoutRates(dropout, dropout, dropout, embedding=dropout, recurrent=dropout),
            regularisation=ActivationRegularisation(2.0, 1.0),
            kind=kind,
        )
    ).to(dtype)
    random = OwnRandomness(CPU) if own else None

    def validate(step: int) -> dict[str, float]:
        return {"loss": float(sum(p.detach().abs().sum() for p in model.parameters()))}

    groups = parameter_groups(model, lr=lr, weight_decay=0.0, lr_by_prefix={})
    setup = TrainingSetup(
        model=model,
        optimizer=make_optimizer("adam", groups),
        loader=loader,
        order=order,
        validate=validate,
        texts={},
    )
    return Trainer(
        setup,
        folder=folder,
        settings=TrainerSettings(
            **{
                "epochs": 2,
                "log_steps": 1,
                "best_metric": "loss",
                "lower_is_better": True,
                "clip_norm": 1.0,
                **settings,
            }
        ),
        device=CPU,
        random=random,
        reporting=Reporting(show_progress=False, name=folder.name),
    )


def make_group(
    folder: Path,
    *,
    at: int = -1,
    act: Any = None,
    settings: Sequence[Any] = SETTINGS,
    orders: Sequence[int] = (7, 7, 7),
    **other: Any,
) -> ReplicaTrainer:
    loaders = {seed: Loader(make_order(seed), at, act) for seed in orders}
    replicas = []
    for k, (one, seed) in enumerate(zip(settings, orders, strict=False)):
        loader, own = loaders[seed], folder / f"replica_{k}"
        trainer = make_trainer(own, *one, own=True, order=loader.order, loader=loader, **other)
        replicas.append(Replica(trainer, {"seed": one[0]}))
    return ReplicaTrainer(
        replicas,
        folder=folder,
        device=CPU,
        show_progress=False,
    )


def alone(folder: Path, one: Sequence[Any], *, order_seed: int = 7, **other: Any) -> Trainer:
    order = make_order(order_seed)
    trainer = make_trainer(folder, *one, own=False, order=order, loader=Loader(order), **other)
    losses = record_losses(trainer)
    trainer.run()
    trainer.losses = losses  # type: ignore[attr-defined]
    return trainer


def record_losses(trainer: Trainer) -> list[float]:
    """The loss of every step from here on."""
    losses: list[float] = []

    class Recorded(PlainStep):
        def __call__(self, group: Any, step: int, running: Tensor, found: Any = None) -> int:
            loss = torch.zeros_like(running)
            tokens = super().__call__(group, step, loss, found)
            losses.append(float(loss))
            running += loss
            return tokens

    trainer.step.__class__ = Recorded
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [*model.state_dict().values()]


def assert_same(a: Trainer, b: Trainer) -> None:
    for mine, other in zip(weights(a.model), weights(b.model), strict=True):
        assert torch.equal(mine, other)
    for x, y in zip(a.progress.history, b.progress.history, strict=True):
        assert {**x, "seconds": 0} == {**y, "seconds": 0}


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_replica_trains_as_it_would_alone(
    tmp_path: Path, kind: str, accumulation: int
) -> None:
    other = {"kind": kind, "accumulation": accumulation, "dtype": torch.float64}
    group = make_group(tmp_path / "group", **other)
    losses = [record_losses(replica.trainer) for replica in group.replicas]
    group.run()
    for k, one in enumerate(SETTINGS):
        single = alone(tmp_path / f"alone_{k}", one, **other)
        steps = 26 if accumulation == 1 else 14
        assert len(losses[k]) == steps
        assert losses[k] == pytest.approx(single.losses, rel=1e-10)  # type: ignore[attr-defined]
        for mine, wanted in zip(
            weights(group.replicas[k].trainer.model), weights(single.model), strict=True
        ):
            torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)


def test_the_threads_change_nothing(tmp_path: Path) -> None:
    """On one thread or two some are computed together, on three each by itself."""
    before = torch.get_num_threads()
    groups = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        groups.append(make_group(tmp_path / f"{threads}"))
        torch.set_num_threads(before)
        groups[-1].run()
    for first, *others in zip(*(one.replicas for one in groups), strict=True):
        for other in others:
            assert_same(first.trainer, other.trainer)


@pytest.mark.parametrize("orders", [(7, 8, 7), (7, 8, 9)])
def test_each_may_read_the_batches_in_an_order_of_its_own(
    tmp_path: Path, orders: Sequence[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Those of one order are computed together, those that are alone in theirs take turns."""
    caplog.set_level(logging.INFO)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        group = make_group(tmp_path / "group", orders=orders)
        group.run()
        for k, (one, seed) in enumerate(zip(SETTINGS, orders, strict=True)):
            assert_same(
                group.replicas[k].trainer, alone(tmp_path / f"alone_{k}", one, order_seed=seed)
            )
    finally:
        torch.set_num_threads(before)
    turns = "3 replicas take turns: each reads the batches in an order of its own"
    assert (turns in caplog.text) == (len(set(orders)) == 3)
    assert ("as one computation" in caplog.text) == (len(set(orders)) < 3)


def test_threads_share_the_replicas_of_several_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two orders on two threads: the two replicas of each are one computation."""
    computed: list[int] = []

    class Counted(StackedModels):
        def __init__(self, models: Any, generators: Any) -> None:
            computed.append(len(models))
            super().__init__(models, generators)

    monkeypatch.setattr(trained_together, "StackedModels", Counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        four = [(seed, *SETTINGS[0][1:]) for seed in range(4)]
        make_group(tmp_path, settings=four, orders=(7, 8, 7, 8)).run()
    finally:
        torch.set_num_threads(before)
    assert computed == [2, 2]


@pytest.mark.parametrize(("at", "orders"), [(10, (7, 7, 7)), (17, (7, 7, 7)), (10, (7, 8, 7))])
def test_a_group_that_was_killed_continues_bit_for_bit(
    tmp_path: Path, at: int, orders: Sequence[int]
) -> None:
    """Its replicas saved at different steps, one had not begun to save."""

    def kill() -> None:
        raise RuntimeError("killed")

    whole = make_group(tmp_path / "whole", orders=orders)
    whole.run()
    killed = make_group(tmp_path / "killed", at=at, act=kill, orders=orders)
    for k, replica in enumerate(killed.replicas[:2]):
        replica.trainer.settings = TrainerSettings(
            **{**vars(replica.trainer.settings), "checkpoint_steps": 2 + k}
        )
    with pytest.raises(RuntimeError, match="killed"):
        killed.run()
    resumed = make_group(tmp_path / "killed", orders=orders)
    resumed.resume()
    resumed.run()
    for a, b in zip(resumed.replicas, whole.replicas, strict=True):
        assert_same(a.trainer, b.trainer)


def test_a_group_that_a_signal_stopped_continues_bit_for_bit(tmp_path: Path) -> None:
    whole = make_group(tmp_path / "whole")
    whole.run()
    stopped = make_group(
        tmp_path / "stopped", at=3, act=lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = make_group(tmp_path / "stopped")
    assert resumed.resume()
    assert resumed.replicas[0].trainer.progress.step == 8
    resumed.run()
    for a, b in zip(resumed.replicas, whole.replicas, strict=True):
        assert_same(a.trainer, b.trainer)


def test_one_that_diverges_is_left_out_and_the_others_continue(tmp_path: Path) -> None:
    settings = (SETTINGS[0], (2, math.inf, 0.0), SETTINGS[2])
    group = make_group(tmp_path / "group", settings=settings)
    group.run()
    assert [replica.failure is None for replica in group.replicas] == [True, False, True]
    assert "no longer finite" in str(group.replicas[1].failure) or "loss became" in str(
        group.replicas[1].failure
    )
    assert_same(group.replicas[2].trainer, make_alone_in_a_group(tmp_path / "two", SETTINGS[2]))
    found = json.loads((tmp_path / "group" / "replicas.json").read_text())
    assert [row["failure"] is None for row in found["replicas"]] == [True, False, True]


def make_alone_in_a_group(folder: Path, one: Sequence[Any]) -> Trainer:
    group = make_group(folder, settings=(one,))
    group.run()
    return group.replicas[0].trainer


def test_when_none_is_left_the_run_ends_with_the_reason(tmp_path: Path) -> None:
    group = make_group(tmp_path, settings=((1, math.inf, 0.0),))
    with pytest.raises(NumericsError, match="no replica is left"):
        group.run()


def test_one_may_stop_early(tmp_path: Path) -> None:
    group = make_group(tmp_path, epochs=4)
    first = group.replicas[0].trainer
    first.validations.settings = TrainerSettings(**{**vars(first.settings), "patience": 1})
    first.validations.validate = lambda step: {"loss": float(step)}
    group.run()
    assert [one.trainer.progress.epoch for one in group.replicas] == [2, 4, 4]


def test_the_best_by_its_score_lies_beside_the_replicas(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    for replica, score in zip(group.replicas, (3.0, 1.0, 2.0), strict=True):
        validations = replica.trainer.validations
        validations.validate = lambda step, score=score: {"loss": score}  # type: ignore[misc]
    history = group.run()
    best = load_checkpoint(tmp_path / "best.pt")
    own = load_checkpoint(tmp_path / "replica_1" / "best.pt")
    assert best.scores == own.scores == {"loss": 1.0}
    assert json.loads((tmp_path / "replicas.json").read_text())["best"] == "replica_1"
    assert [figures["replica"] for figures in history] == [0, 0, 1, 1, 2, 2]


def test_as_many_validate_at_a_time_as_there_are_threads_each_on_one(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        group = make_group(tmp_path, epochs=1, settings=SETTINGS[:2])
    finally:
        torch.set_num_threads(before)
    meeting, threads = Barrier(2, timeout=60), []

    def validate(step: int) -> dict[str, float]:
        meeting.wait()  # raises where they come one after another
        threads.append(torch.get_num_threads())
        return {"loss": 1.0}

    for replica in group.replicas:
        replica.trainer.validations.validate = validate
    group.run()
    assert threads == [1, 1]
