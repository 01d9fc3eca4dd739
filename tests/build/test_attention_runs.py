"""Runs of models that attend: interrupted, captured, as replicas, exported, in an ensemble."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import compose_config
from PIL import ImageOps

from captioner.build.checkpoint import load_captioner
from captioner.build.components import build_encoder, load_data
from captioner.build.ensemble import TrainedEnsemble, load_ensemble
from captioner.build.trainer import build_trainer
from captioner.commands.export import export
from captioner.config import GenerationConfig, TrainConfig
from captioner.data.images import load_image
from captioner.errors import ConfigError, DataError
from captioner.training.checkpoint import load_checkpoint
from captioner.training.replicas import ReplicaTrainer
from captioner.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")
SMALL = [
    "data.train=8", "data.dev=4", "data.test=4", "data.size=32", "vocabulary.min_count=1",
    "model.embedding_dim=8", "model.hidden_size=8", "trainer.batch_size=4", "trainer.epochs=2",
    "trainer.progress=false", "trainer.shown_pictures=1", "generation.max_length=5", "device=cpu",
    "optimizer.lr=1e-2",
]  # fmt: skip
GRID = [
    "encoder=plain", "encoder.name=plain_small", "encoder.size=32", "encoder.grid_size=2",
    "encoder.train_from=null", "encoder.views=[original]",
]  # fmt: skip
POOLED = [*GRID[:3], "encoder.output=pooled", "encoder.grid_size=null", *GRID[4:]]
ATTENTION = ["model.attention_dim=8"]
DROPOUT = [
    "model.input_dropout=0.2", "model.output_dropout=0.2", "model.feature_dropout=0.2",
    "model.region_dropout=0.2", "model.attention_dropout=0.2",
]  # fmt: skip
MODELS = {
    "layered": ["model=layered_attention", "model.heads=2", "model.join=lstm", *ATTENTION],
    "adaptive": ["model=adaptive_attention", *ATTENTION],
    "show": ["model=show_attend_tell", *ATTENTION],
    "up": ["model=up_down", *ATTENTION],
}
BY = {"caption": "trainer.batch_by=caption", "image": "trainer.batch_by=picture"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the runs, which share data and features."""
    return tmp_path_factory.mktemp("attention")


def configured(folder: Path, run: str, *changes: str) -> TrainConfig:
    places = [f"run_dir={folder}/{run}", f"data.root={folder}/scenes"]
    places.append(f"encoder.cache_dir={folder}/features")
    config: TrainConfig = compose_config("train", [*SMALL, *places, *changes], configs=CONFIGS)
    return config


def make(folder: Path, run: str, *changes: str) -> Trainer | ReplicaTrainer:
    return build_trainer(configured(folder, run, *GRID, *changes))


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder / run / "last.pt").model)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("model", "by"),
    [("layered", "image"), ("adaptive", "caption"), ("show", "image"), ("up", "caption")],
)
def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(
    folder: Path, model: str, by: str
) -> None:
    changes = [*MODELS[model], *DROPOUT, BY[by], "trainer.ema=0.9"]
    if model in ("adaptive", "up"):  # one without feedback, one with it
        changes += ["trainer.scheduled_sampling=0.9", "trainer.scheduled_sampling_increase=0.4"]
    history: Any = make(folder, f"whole {model}", *changes).run()
    if model in ("adaptive", "up"):
        assert [round(one["sampled_words"], 1) for one in history] == [0.4, 0.8]
    stopped = make(folder, f"stopped {model}", *changes)
    assert isinstance(stopped, Trainer)
    stopped.begin_epoch()
    for batch in islice(iter(stopped.loader), 2):
        stopped.take([batch])
    stopped.stop()
    make(folder, f"stopped {model}", *changes, "resume=true").run()
    assert_same(weights(folder, f"stopped {model}"), weights(folder, f"whole {model}"))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("model", ["layered", "adaptive"])
def test_the_form_of_a_graph_learns_the_same(folder: Path, model: str, by: str) -> None:
    losses: list[list[float]] = []
    for graph in ("off", "on"):
        changes = [*MODELS[model], BY[by], f"trainer.graph={graph}"]
        history: Any = make(folder, f"graph {graph} {model} {by}", *changes).run()
        losses.append([figures["train_loss"] for figures in history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(("model", "order"), [("layered", 3), ("adaptive", 5)])
def test_a_replica_trains_as_it_would_alone(folder: Path, model: str, order: int) -> None:
    """In the order of the batches that the other has, or in one of its own."""
    encoder = folder / "encoder.pt"
    config = configured(folder, "x", *GRID)
    torch.save(build_encoder(config.encoder, seed=0).trunk.state_dict(), encoder)
    changes = [*MODELS[model], *DROPOUT, f"encoder.weights={encoder}"]
    differs = [f"replicas.order_seed=[3,{order}]", "replicas.attention_dropout=[0.1,0.3]"]
    make(folder, f"together {model}", *changes, "trainer.replicas=2", *differs).run()
    alone = [f"trainer.order_seed={order}", "model.attention_dropout=0.3", "seed=1"]
    make(folder, f"alone {model}", *changes, *alone).run()
    found = weights(folder, f"together {model}/replica_1")
    assert_same(found, weights(folder, f"alone {model}"))


@pytest.mark.parametrize("model", ["layered", "up"])
def test_a_run_in_bfloat16_learns_about_the_same(folder: Path, model: str) -> None:
    last = []
    for precision in ("float32", "bf16"):
        changes = [*MODELS[model], f"trainer.precision={precision}"]
        history: Any = make(folder, f"{precision} {model}", *changes).run()
        last.append(history[-1]["train_loss"])
    assert last[1] == pytest.approx(last[0], rel=0.05)


def trained_checkpoint(folder: Path, model: str) -> Path:
    """A checkpoint after one epoch, trained once."""
    path = folder / f"trained {model}" / "best.pt"
    if not path.exists():
        make(folder, f"trained {model}", *MODELS[model], "trainer.epochs=1").run()
    return path


@pytest.mark.parametrize("model", MODELS)
def test_a_model_folder_captions_as_its_checkpoint_does(folder: Path, model: str) -> None:
    checkpoint, out = trained_checkpoint(folder, model), folder / f"folder {model}"
    config = compose_config("export", [f"checkpoint={checkpoint}", f"out={out}"], configs=CONFIGS)
    export(config)
    found = []
    dev = load_data(configured(folder, "x").data).split("dev")  # a folder to share has no paths
    for path in (checkpoint, out):
        trained = load_captioner(path, device=CPU)
        images = trained.features.source(dev)
        captions = trained.generator(GenerationConfig(n_best=2)).captions(images(torch.arange(4)))
        found.append([[(one.text, one.log_prob) for one in image] for image in captions])
    assert found[0] == found[1] and len(found[0][0]) == 2


def test_models_of_all_kinds_caption_together(folder: Path) -> None:
    paths = [trained_checkpoint(folder, model) for model in MODELS]
    build_trainer(configured(folder, "member pooled", *POOLED, "trainer.epochs=1")).run()
    ensemble = load_ensemble([*paths, folder / "member pooled" / "best.pt"], device=CPU)
    images = ensemble.source(load_data(ensemble.data).split("dev"))(torch.arange(4))
    for method in ("greedy", "beam", "sample"):
        captions = ensemble.generator(GenerationConfig(method=method)).captions(images)
        assert len(captions) == 4 and all(one[0].text for one in captions)


def test_views_make_no_difference_between_an_image_and_its_mirror_image(folder: Path) -> None:
    checkpoint = trained_checkpoint(folder, "layered")
    both = load_ensemble([checkpoint], device=CPU, views=["original", "mirror"])
    one = load_ensemble([checkpoint], device=CPU)
    images = load_data(both.data).split("dev")
    photo = load_image(images[0].path)
    generation = GenerationConfig(beam_size=2)

    def log_prob(trained: TrainedEnsemble, features: Any) -> float:
        return trained.generator(generation).captions(features)[0][0].log_prob

    found = log_prob(both, both.of_image(photo))
    assert log_prob(both, both.of_image(ImageOps.mirror(photo))) == pytest.approx(found, abs=1e-6)
    assert log_prob(both, both.source(images)(torch.arange(1))) == pytest.approx(found, abs=1e-4)
    alone = [log_prob(one, one.of_image(x)) for x in (photo, ImageOps.mirror(photo))]
    assert abs(alone[0] - alone[1]) > 1e-4, "the mirror image is no other image for the model"


def test_own_features_have_one_view(folder: Path) -> None:
    overrides = own_features(folder, 4)
    build_trainer(
        configured(folder, "own", *overrides, *MODELS["layered"], "trainer.epochs=1")
    ).run()
    with pytest.raises(ConfigError, match=r"own features .* there are no views original, mirror"):
        load_ensemble([folder / "own" / "best.pt"], device=CPU, views=["original", "mirror"])


def own_features(folder: Path, regions: int) -> list[str]:
    """Overrides for features of one's own, with so many regions an image."""
    path = folder / "own.npy"
    overrides = ["encoder=features", f"encoder.path={path}"]
    data = load_data(configured(folder, "x", *overrides).data)
    names = [image.name for split in ("train", "dev") for image in data.split(split)]
    (folder / "own.names.json").write_text(json.dumps(names))
    np.save(path, np.random.default_rng(0).standard_normal((len(names), regions, 6), np.float32))
    return overrides


def test_a_model_that_attends_refuses_pooled_features(folder: Path) -> None:
    overrides = own_features(folder, 1)
    with pytest.raises(
        ConfigError, match=r"model=layered_attention attends .* one region an image"
    ):
        build_trainer(configured(folder, "one region", *overrides, *MODELS["layered"]))


@pytest.mark.parametrize(("model", "regions", "other"), [("layered", 4, 1), ("pooled", 1, 4)])
def test_a_checkpoint_refuses_the_other_kind_of_features(
    folder: Path, model: str, regions: int, other: int
) -> None:
    overrides = own_features(folder, regions)
    run = f"own {model}"
    build_trainer(configured(folder, run, *overrides, *MODELS.get(model, []))).run()
    trained = load_captioner(folder / run / "best.pt", device=CPU)
    images = load_data(trained.data).split("dev")
    assert trained.features.source(images)(torch.tensor([0])).shape == (1, regions, 6)
    own_features(folder, other)
    with pytest.raises(DataError, match=rf"\[{other}, 6\] of an image.* on \[{regions}, 6\]"):
        trained.features.source(images)
