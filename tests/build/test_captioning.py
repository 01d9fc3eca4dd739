"""Training on several views of a grid: the same run whether it is interrupted, captured or not."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import compose_config

from captioner.build.checkpoint import load_captioner
from captioner.build.components import build_encoder, load_data
from captioner.build.trainer import build_trainer
from captioner.errors import ConfigError, DataError
from captioner.training.checkpoint import load_checkpoint
from captioner.training.replicas import ReplicaTrainer
from captioner.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "data.train=12", "data.dev=4", "data.test=4", "data.size=32", "vocabulary.min_count=1",
    "encoder=plain", "encoder.name=plain_small", "encoder.size=32", "encoder.grid_size=2",
    "encoder.train_from=null", "encoder.views=[original,mirror]", "model.embedding_dim=8",
    "model.hidden_size=8", "model.input_dropout=0.2", "trainer.batch_size=4", "trainer.epochs=2",
    "trainer.progress=false", "trainer.shown_pictures=1", "generation.max_length=5", "device=cpu",
]  # fmt: skip
BATCHES = ["trainer.batch_by=caption", "trainer.batch_by=picture"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the runs, which share data and features."""
    return tmp_path_factory.mktemp("views")


def make(folder: Path, run: str, *changes: str) -> Trainer | ReplicaTrainer:
    places = [f"run_dir={folder}/{run}", f"data.root={folder}/scenes"]
    places.append(f"encoder.cache_dir={folder}/features")
    return build_trainer(compose_config("train", [*SMALL, *places, *changes], configs=CONFIGS))


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder / run / "last.pt").model)


@pytest.mark.parametrize("by", BATCHES)
def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(folder: Path, by: str) -> None:
    whole = make(folder, f"whole {by[17:]}", by)
    whole.run()
    stopped = make(folder, f"stopped {by[17:]}", by)
    assert isinstance(stopped, Trainer)
    stopped.begin_epoch()
    for batch in islice(iter(stopped.loader), 2):
        stopped.take([batch])
    stopped.stop()
    make(folder, f"stopped {by[17:]}", by, "resume=true").run()
    expected, found = (weights(folder, f"{run} {by[17:]}") for run in ("whole", "stopped"))
    assert expected and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("by", BATCHES)
def test_the_form_of_a_graph_learns_the_same(folder: Path, by: str) -> None:
    losses: list[list[float]] = []
    for graph in ("off", "on"):
        changes = [by, f"trainer.graph={graph}", "model.input_dropout=0", "model.output_dropout=0"]
        history: Any = make(folder, f"graph {graph} {by[17:]}", *changes).run()
        losses.append([figures["train_loss"] for figures in history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_views_change_what_is_learnt_and_not_the_checkpoint_s_images(folder: Path) -> None:
    make(folder, "both").run()
    make(folder, "one", "encoder.views=[original]").run()
    both, one = weights(folder, "both"), weights(folder, "one")
    assert torch.equal(both["feature_mean"], one["feature_mean"])
    assert not torch.equal(both["image_projection.weight"], one["image_projection.weight"])
    identities = [
        load_checkpoint(folder / run / "best.pt").texts["encoder"] for run in ("both", "one")
    ]
    assert identities[0] == identities[1] and json.loads(identities[0])["regions"] == 4
    assert load_captioner(folder / "both" / "best.pt", device=torch.device("cpu"))


def test_replicas_see_what_one_sees(folder: Path) -> None:
    weights_file = folder / "encoder.pt"
    config = compose_config("train", [*SMALL, f"run_dir={folder}/x"], configs=CONFIGS)
    torch.save(build_encoder(config.encoder, seed=0).trunk.state_dict(), weights_file)
    given = [f"encoder.weights={weights_file}", "trainer.order_seed=3"]
    make(folder, "together", *given, "trainer.replicas=2").run()
    make(folder, "alone", *given, "seed=1").run()
    expected, found = weights(folder, "alone"), weights(folder, "together/replica_1")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_trained_encoder_sees_views_too(folder: Path) -> None:
    trained = ["encoder.train_from=stage1", "trainer.batch_by=picture"]
    make(folder, "trained both", *trained).run()
    make(folder, "trained one", *trained, "encoder.views=[original]").run()
    both, one = weights(folder, "trained both"), weights(folder, "trained one")
    assert any(not torch.equal(both[name], one[name]) for name in both)


def test_a_run_with_other_views_is_not_resumed(folder: Path) -> None:
    make(folder, "two views")
    with pytest.raises(ConfigError, match=r"encoder\.views was \['original', 'mirror'\], now"):
        make(folder, "two views", "resume=true", "encoder.views=[original]")


def test_a_run_from_before_views_continues(folder: Path) -> None:
    pooled = ["encoder.output=pooled", "encoder.grid_size=null", "encoder.views=[original]"]
    make(folder, "older", *pooled)
    path = folder / "older" / "config.json"
    tree = json.loads(path.read_text())
    del tree["encoder"]["views"], tree["encoder"]["cache_dtype"]
    path.write_text(json.dumps(tree))
    history: Any = make(folder, "older", *pooled, "resume=true").run()
    assert [figures["epoch"] for figures in history] == [1, 2]


def test_a_grid_size_that_does_not_divide_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.grid_size=3 must divide"):
        make(folder, "uneven", "encoder.grid_size=3")


def test_a_captioner_of_own_features_refuses_another_grid(folder: Path) -> None:
    places = [
        f"run_dir={folder}/own",
        f"data.root={folder}/scenes",
        f"encoder.path={folder}/own.npy",
    ]
    others = [one for one in SMALL if not one.startswith("encoder")]
    config = compose_config("train", [*others, *places, "encoder=features"], configs=CONFIGS)
    data = load_data(config.data)
    names = [image.name for split in ("train", "dev") for image in data.split(split)]
    (folder / "own.names.json").write_text(json.dumps(names))
    np.save(folder / "own.npy", np.eye(len(names), 24, dtype=np.float32).reshape(-1, 4, 6))
    build_trainer(config).run()
    trained = load_captioner(folder / "own" / "best.pt", device=torch.device("cpu"))
    assert trained.features.source(data.split("dev"))(torch.tensor([0])).shape == (1, 4, 6)
    np.save(folder / "own.npy", np.ones((len(names), 9, 6), np.float32))
    with pytest.raises(DataError, match=r"\[9, 6\] of an image.* trained on \[4, 6\]"):
        trained.features.source(data.split("dev"))
