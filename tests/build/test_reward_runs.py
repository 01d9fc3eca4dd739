"""Runs that train on a score, from a trained captioner's weights."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config

from captioner.build.reward import reward_objective
from captioner.build.trainer import build_trainer
from captioner.config import RewardConfig
from captioner.data.captions import CaptionedImage
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, DataError
from captioner.files import read_json
from captioner.training.checkpoint import load_checkpoint
from captioner.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "data.train=12", "data.dev=4", "data.test=4", "data.size=32", "vocabulary.min_count=1",
    "encoder=plain", "encoder.name=plain_small", "encoder.size=32", "encoder.train_from=null",
    "model.embedding_dim=8", "model.hidden_size=8", "trainer.batch_size=4", "trainer.epochs=2",
    "trainer.progress=false", "trainer.shown_pictures=1", "trainer.batch_by=picture",
    "generation.max_length=5", "device=cpu", "optimizer.lr=1e-2",
]  # fmt: skip
KINDS = {
    "layered": [
        "model=layered_attention", "model.heads=2", "model.attention_dim=8", "encoder.grid_size=2",
    ],
    "pooled": ["model=show_and_tell", "encoder.output=pooled", "encoder.grid_size=null"],
}  # fmt: skip
REWARD = ["trainer.objective=reward", "reward.max_length=6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the runs, which share data and features."""
    return tmp_path_factory.mktemp("reward")


def make(folder: Path, run: str, kind: str, *changes: str) -> Trainer:
    places = [f"run_dir={folder}/{run}", f"data.root={folder}/scenes"]
    places.append(f"encoder.cache_dir={folder}/features")
    overrides = [*SMALL, *places, *KINDS[kind], *changes]
    trainer = build_trainer(compose_config("train", overrides, configs=CONFIGS))
    assert isinstance(trainer, Trainer)
    return trainer


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A captioner that attends, after an epoch of cross-entropy."""
    make(folder, "trained", "layered", "trainer.epochs=1").run()
    return folder / "trained"


def test_a_run_on_the_score_of_a_trained_captioner_continues_bit_for_bit(
    folder: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = [*REWARD, f"init_from={trained}", "trainer.ema=0.9", "model.output_dropout=0.2"]
    with caplog.at_level(logging.INFO):
        whole = make(folder, "whole", "layered", *changes)
    start = load_checkpoint(trained / "best.pt")
    assert all(torch.equal(x, start.model[name]) for name, x in whole.model.state_dict().items())
    assert f"of {len(start.model)} tensors from {trained} (BLEU-4 " in caplog.text
    assert "reward: 1 CIDEr-D, 5 samples an image, references of 12 images" in caplog.text
    history = whole.run()
    for figures in history:
        assert 0 < figures["reward"] < 10 and figures["reward_spread"] > 0 < figures["entropy"]
    stopped = make(folder, "stopped", "layered", *changes)
    stopped.begin_epoch()
    for batch in islice(iter(stopped.loader), 2):
        stopped.take([batch])
    stopped.stop()
    (trained / "best.pt").rename(trained / "moved.pt")  # a run that continues does not need it
    resumed = make(folder, "stopped", "layered", *changes, "resume=true").run()
    (trained / "moved.pt").rename(trained / "best.pt")
    ends = [load_checkpoint(folder / run / "last.pt").model for run in ("whole", "stopped")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    timeless: Any = [[{**one, "seconds": 0} for one in found] for found in (history, resumed)]
    assert timeless[0] == timeless[1] == [{**x, "seconds": 0} for x in _kept(folder / "stopped")]


def _kept(run: Path) -> list[dict[str, float]]:
    return read_json(run / "history.json")


def test_a_pooled_model_learns_to_earn_more(folder: Path) -> None:
    changes = [
        *REWARD, "reward.baseline=greedy", "reward.cross_entropy=0.3", "reward.bleu=0.5",
        "reward.meteor=0.5", "reward.search=beam",
        "trainer.epochs=5", "trainer.batch_size=2", "optimizer.lr=0.03",
    ]  # fmt: skip
    rewards = [figures["reward"] for figures in make(folder, "pooled", "pooled", *changes).run()]
    assert rewards[-1] > 1.5 * rewards[0]


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("layered", ["vocabulary.min_count=9"], r"another vocabulary: \d+ of its \d+ tokens are "
         r"not among the \d+ here, 0 of these .* \(for example '\w+'\); no word's weights"),
        ("layered", ["model.hidden_size=9"], r"does not fit this model: .* is \[.*\] there and "),
        ("layered", ["seed=1"], "was trained on other features of images: fingerprint was"),
        ("layered", ["init_from=nowhere"], "there is no checkpoint at nowhere"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(
    folder: Path, trained: Path, kind: str, changes: list[str], sentence: str
) -> None:
    run = f"refused {changes[0]}".replace("=", " ")
    with pytest.raises(CheckpointError, match=sentence):
        make(folder, run, kind, *REWARD, f"init_from={trained}", *changes)


def test_what_two_models_share_is_taken_and_the_rest_named(
    folder: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = make(
            folder, "gated", "layered", f"init_from={trained}", "model.join=lstm"
        ).model.state_dict()
    start = load_checkpoint(trained / "best.pt").model
    shared = "language_model.output.weight"
    assert torch.equal(model[shared], start[shared])
    assert "tensors not there, initialised: second." in caplog.text
    assert "2 tensors there only, left: context_projection.weight, context_pr" in caplog.text


def test_images_without_a_caption_are_named() -> None:
    vocabulary = Vocabulary(["dog"], counts=[0] * 5)
    images = [
        CaptionedImage(name, Path(name), captions, name)
        for name, captions in (("a.jpg", ("a dog",)), ("b.jpg", ()))
    ]
    with pytest.raises(DataError, match=r"1 of 2 images have none .* the first: b\.jpg"):
        reward_objective(RewardConfig(), None, vocabulary, images)  # type: ignore[arg-type]
