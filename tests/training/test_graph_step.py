"""The step that a CUDA graph can hold, run as it is on the CPU: the plain loop's curve, nothing
read by the host, exact resume. On a GPU, where it is captured, test_graph_capture.py has its turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_runs import VOCABULARY, epochs, losses, make_data, make_dataset, make_trainer
from host_reads import HostRead, no_host_reads
from torch import Tensor
from torch._subclasses import FakeTensorMode

from captioner.data.dataset import BatchOrder, make_loader
from captioner.data.resident import ResidentLoader, token_capacities
from captioner.models.captioner import Captioner
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.training.checkpoint import load_checkpoint
from captioner.training.trainer import Trainer


def capacities_taken(trainer: Trainer, count: int) -> set[int]:
    found = set()
    for trainer.order.epoch in range(count):
        found |= {batch.capacity for batch in trainer.loader}  # type: ignore[union-attr]
    return found


SETTINGS: dict[str, dict[str, Any]] = {
    "adam, clipped": {"clip_norm": 0.5, "schedule": "cosine", "warmup_steps": 7},
    "rmsprop, clipped by value": {
        "optimizer": "rmsprop",
        "clip_value": 0.02,
        "label_smoothing": 0.1,
    },
    "sgd": {"optimizer": "sgd", "schedule": "linear"},
    "by image": {"by_image": True, "label_smoothing": 0.1},
    "accumulated": {"accumulation": 3, "clip_norm": 1.0},
    "accumulated by image": {"accumulation": 2, "by_image": True},
    "averaged": {"ema": 0.9},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_the_loss_curve_is_that_of_the_plain_loop(case: str, tmp_path: Path) -> None:
    """In float64, over 50 steps: epochs end in a smaller batch, or in a smaller group of them, and
    some batches need the larger capacity."""
    settings = {"epochs": 60, "precise": True, **SETTINGS[case]}
    plain = make_trainer(tmp_path, graph=False, **settings)
    graph = make_trainer(tmp_path, graph=True, **settings)
    assert len(graph.order) % settings.get("accumulation", 1) or "acc" not in case
    assert graph.order.size % graph.order.batch_size
    assert capacities_taken(graph, 3) == set(graph.step.data.capacities)  # type: ignore[attr-defined]
    expected, found = losses(plain, 50), losses(graph, 50)
    # The learning rate alone is a float32 number on the device, and a double on the host.
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-6, atol=0)
    assert expected[-1] < expected[0] - 0.02
    pairs = [(plain.model.state_dict(), graph.model.state_dict())]
    if plain.average is not None and graph.average is not None:
        assert plain.average.steps == graph.average.steps == 50
        pairs.append((plain.average.state()["average"], graph.average.state()["average"]))
    for wanted, own in pairs:
        for name, tensor in wanted.items():
            torch.testing.assert_close(own[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_image", [False, True])
def test_batches_are_those_of_the_plain_loader(by_image: bool) -> None:
    dataset = make_dataset(by_image)
    order = BatchOrder(len(dataset), batch_size=5, seed=2)
    order.epoch, order.position = 4, 1
    data = make_data(dataset, order)
    plans = ResidentLoader(data, order)
    for planned, batch in zip(plans, make_loader(dataset, order, workers=0), strict=True):
        found = data.gather(planned.rows, planned.capacity)
        tokens, sizes = len(batch.targets), batch.tokens.batch_sizes
        assert planned.tokens == int(found.tokens) == tokens
        assert torch.equal(found.inputs[:tokens], batch.tokens.inputs)
        assert torch.equal(found.targets[:tokens], batch.targets)
        assert found.targets[tokens:].eq(-100).all()
        assert torch.equal(found.batch_sizes[: len(sizes)], sizes)
        assert not found.batch_sizes[len(sizes) :].any()
        seen = found.images[found.image_rows]
        assert torch.equal(seen[: sizes[0]], batch.images[batch.image_rows])


def test_capacities_hold_what_they_should() -> None:
    lengths = torch.randint(1, 20, (3000,), generator=torch.Generator().manual_seed(0))
    usual, largest = token_capacities(lengths, 64, seed=7)
    assert usual % 64 == largest % 64 == 0
    assert largest >= int(lengths.sort(descending=True)[0][:64].sum()) > largest - 64
    order = BatchOrder(3000, batch_size=64, seed=1)
    fits = []
    for order.epoch in range(30):
        fits += [int(lengths[rows].sum()) <= usual for rows in order]
    assert sum(fits) / len(fits) > 0.99
    assert usual < 1.35 * 64 * float(lengths.double().mean())


@pytest.mark.parametrize("case", SETTINGS)
def test_a_step_reads_nothing_on_the_host(case: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, graph=True, **{"dropout": 0.2, "epochs": 9, **SETTINGS[case]})
    groups = epochs(trainer)
    first = next(groups)
    trainer.step(first, 0, torch.zeros((), dtype=torch.float64))  # optimisers make their state
    with no_host_reads():
        trainer.step.take(max(trainer.step.data.capacities))  # type: ignore[attr-defined]


def test_the_plain_step_does_read_on_the_host(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, graph=False)
    group = next(epochs(trainer))
    with pytest.raises(HostRead), no_host_reads():
        trainer.step(group, 0, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("by_image", [False, True])
def test_batch_and_loss_are_made_on_the_device(by_image: bool) -> None:
    """Of a GPU that is not there: a tensor left on the CPU cannot meet those on the device."""
    dataset = make_dataset(by_image)
    order = BatchOrder(len(dataset), batch_size=4, seed=2)
    data = make_data(dataset, order)
    with FakeTensorMode() as mode, torch.device("cuda"):
        for name, value in vars(data).items():
            if isinstance(value, Tensor) and name != "tokens_per_row":
                setattr(data, name, mode.from_tensor(value).to("cuda"))
        model = Captioner(
            language_model=LanguageModel(
                vocab_size=len(VOCABULARY),
                embedding_dim=8,
                hidden_size=8,
                dropout=DropoutRates(input=0.1),
                backend="reference",
            ),
            feature_dim=6,
        )
    with mode:
        batch = data.gather(torch.arange(4, device="cuda"), data.capacities[0])
        loss = model.loss(*batch.model_inputs, batch.targets, label_smoothing=0.1, capacity=True)
        assert loss.device.type == batch.tokens.device.type == "cuda"


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_checkpoint(folder / "last.pt").model)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_a_stopped_run_continues_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    """With dropout, schedule, average and groups of batches, stopped in the middle of an epoch."""
    settings: dict[str, Any] = {
        "graph": True,
        "optimizer": optimizer,
        "dropout": 0.3,
        "ema": 0.9,
        "accumulation": 2,
        "schedule": "cosine",
        "checkpoint_steps": 1,
    }
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.run()

    stopped = make_trainer(tmp_path / "stopped", **settings)
    loader, given = stopped.loader, itertools.count()

    class Stops:
        def __iter__(self) -> Iterator[Any]:
            for batch in loader:
                if next(given) == 6:
                    raise RuntimeError("stopped")
                yield batch

    stopped.loader = Stops()
    with pytest.raises(RuntimeError, match="stopped"):
        stopped.run()
    assert load_checkpoint(tmp_path / "stopped" / "last.pt").training["progress"]["position"] > 0  # type: ignore[index]
    again = make_trainer(tmp_path / "stopped", **settings)
    assert again.resume()
    again.run()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert [x["train_loss"] for x in again.progress.history] == [
        x["train_loss"] for x in whole.progress.history
    ]


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
@pytest.mark.parametrize("first", [True, False])
def test_either_kind_of_run_continues_from_the_other(
    first: bool, optimizer: str, tmp_path: Path
) -> None:
    make_trainer(tmp_path, graph=first, optimizer=optimizer, epochs=1).run()
    other = make_trainer(tmp_path, graph=not first, optimizer=optimizer, epochs=2)
    other.progress.finished = False
    assert other.resume()
    other.progress.finished = False
    history = other.run()
    whole = make_trainer(tmp_path / "whole", graph=False, optimizer=optimizer, epochs=2)
    whole.run()
    for mine, theirs in zip(history, whole.progress.history, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def test_checkpoints_hold_plain_numbers(tmp_path: Path) -> None:
    make_trainer(tmp_path, graph=True, epochs=1).run()
    training = load_checkpoint(tmp_path / "last.pt").training
    assert training is not None
    for group in training["optimizer"]["param_groups"]:
        assert isinstance(group["lr"], float) and group["capturable"] is False
