"""A step of several models in the form that a CUDA graph can hold, run as it is on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from graph_runs import epochs, losses, make_trainer
from host_reads import no_host_reads
from recorded_graphs import Recording, recording_call
from torch import Tensor

from captioner.ops.extension import why_not_on
from captioner.training.capture import WARM_UPS
from captioner.training.replicas import Replica, _Part
from captioner.training.stacked import StackedModels
from captioner.training.stacked_graph import StackedGraphStep
from captioner.training.trainer import Trainer

RATES = (1.0, 0.3, 2.0)  # of learning, relative
SETTINGS = {"epochs": 60, "backend": "reference", "clip_norm": 0.5, "ema": 0.9}


def trainers(folder: Path, **settings: object) -> list[Trainer]:
    """Models that begin with other weights and learn at other rates."""
    found = []
    for number, rate in enumerate(RATES):
        trainer = make_trainer(folder, graph=True, **{**SETTINGS, **settings})  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter *= 1 + number / 4
        trainer.step.rates_by_step *= rate  # type: ignore[union-attr]
        found.append(trainer)
    return found


def together(each: list[Trainer]) -> StackedGraphStep:
    generators = [torch.Generator(one.device).manual_seed(k) for k, one in enumerate(each)]
    models = StackedModels([one.model for one in each], generators)
    return StackedGraphStep([one.step for one in each], models, generators)  # type: ignore[misc]


def losses_together(each: list[Trainer], step: StackedGraphStep, count: int) -> list[list[float]]:
    """The mean loss a token of each model and step, as `losses` gives one model's."""
    found: list[list[float]] = [[] for _ in each]
    groups = epochs(each[0])
    for one in each:
        one.model.train()
    for number in range(count):
        group = next(groups)
        own, tokens = step(group, number)
        for trainer, loss, taken in zip(each, own, found, strict=True):
            running = torch.zeros((), dtype=torch.float64, device=trainer.device)
            trainer.step(group, number, running, (loss, tokens))
            taken.append(float(running) / tokens)
    return found


def test_each_model_takes_the_steps_that_it_takes_alone(tmp_path: Path) -> None:
    """Of two batches each; float32 rounds otherwise in batched products."""
    alone = trainers(tmp_path, accumulation=2)
    expected = [losses(one, 2) for one in alone]
    each = trainers(tmp_path, accumulation=2)
    found = losses_together(each, together(each), 2)
    for own, wanted in zip(found, expected, strict=True):
        assert own == pytest.approx(wanted, rel=1e-5)
    assert len({own[-1] for own in found}) == len(RATES)
    for one, other in zip(each, alone, strict=True):
        for mine, theirs in zip(one.step.state(), other.step.state(), strict=True):  # type: ignore[union-attr]
            if mine is not one.step.loss:  # type: ignore[union-attr]
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        assert one.average is not None and one.average.steps == 2


def test_replicas_take_it_until_one_is_lost(tmp_path: Path) -> None:
    """The others' step is then made anew."""
    expected, each = trainers(tmp_path), trainers(tmp_path)
    wanted = losses_together(expected, together(expected), 3)
    replicas = [Replica(one) for one in each]
    part = _Part(replicas)
    for one in each:
        one.begin_epoch()
    for number, group in zip(range(3), epochs(expected[0]), strict=False):
        if number == 2:
            replicas[1].failure = "lost"
        part.take([((0, number), group)])
    assert [one.progress.step for one in each] == [3, 2, 3]
    for k in (0, 2):
        progress = each[k].progress
        total = (progress.loss_sum + float(each[k]._running)) / progress.tokens
        assert total == pytest.approx(sum(wanted[k]) / 3, rel=0.05)
        pairs = zip(each[k].model.parameters(), expected[k].model.parameters(), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_step_reads_nothing_on_the_host(tmp_path: Path) -> None:
    each = trainers(tmp_path)
    step = together(each)
    losses_together(each, step, 1)  # optimisers make their state
    with no_host_reads():
        step.take(max(each[0].step.data.capacities))  # type: ignore[union-attr]


def test_what_is_not_a_number_stays_with_its_model(tmp_path: Path) -> None:
    found = []
    for lost in (False, True):
        each = trainers(tmp_path)
        step = together(each)
        if lost:
            next(each[1].model.parameters()).data[0] = torch.nan
        found.append((losses_together(each, step, 3), each))
    assert all(value != value for value in found[1][0][1])
    for k in (0, 2):
        assert found[1][0][k] == found[0][0][k]
        pairs = zip(*(each[k].model.parameters() for _, each in found), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.usefixtures("recorded_graphs")
def test_warming_up_is_undone_and_replays_are_the_steps(tmp_path: Path) -> None:
    """Of every model: weights, averages, optimisers and random numbers."""
    plain, each = trainers(tmp_path, dropout=0.3), trainers(tmp_path, dropout=0.3)
    expected = losses_together(plain, together(plain), 4)
    step, counts = together(each), dict[int, int]()
    before: list[Tensor] = [x.detach().clone() for x in step.state()]
    states = [one.get_state() for one in step.generators]
    step.take = recording_call(step.take, counts)  # type: ignore[method-assign]
    step._run = captured = step.capture()
    capacities = each[0].step.data.capacities  # type: ignore[union-attr]
    assert counts == dict.fromkeys(capacities, WARM_UPS)
    assert all(map(torch.equal, before, step.state()))
    assert all(map(torch.equal, states, [one.get_state() for one in step.generators]))
    graphs: list[Recording] = [*captured._graphs.values()]  # type: ignore[list-item]
    assert [graph.generators for graph in graphs] == [[*step.generators]] * len(set(capacities))
    for one in each:
        values = [x for own in one.optimizer.state.values() for x in own.values()]
        assert not any(x.any() for x in values if isinstance(x, Tensor))
    assert losses_together(each, step, 4) == expected


# -- on a GPU -------------------------------------------------------------------------------------

ON_GPU = {"device": torch.device("cuda"), "backend": "persistent", "bf16": True}


def no_gpu() -> str | None:
    return why_not_on("cuda") if torch.cuda.is_available() else "needs a GPU"


gpu = pytest.mark.skipif(no_gpu() is not None, reason=str(no_gpu()))


@gpu
def test_on_a_gpu_replays_are_the_steps_uncaptured(tmp_path: Path) -> None:
    plain, each = (trainers(tmp_path, **ON_GPU) for _ in range(2))
    eager = together(plain)
    eager._run = eager.take
    expected = losses_together(plain, eager, 50)
    step = together(each)
    for own, wanted in zip(losses_together(each, step, 50), expected, strict=True):
        assert own == pytest.approx(wanted, rel=2e-3)
    assert step._run is not None


@gpu
def test_on_a_gpu_every_replay_drops_something_else(tmp_path: Path) -> None:
    each = trainers(tmp_path, dropout=0.5, **ON_GPU)
    for one in each:
        one.step.rates_by_step.zero_()  # type: ignore[union-attr]
    step, (group, *_) = together(each), [next(epochs(each[0]))]
    seen = [tuple(map(float, step(group, number)[0])) for number in range(5)]
    assert all(len(set(own)) == 5 for own in zip(*seen, strict=True))
