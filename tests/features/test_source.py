"""The two readers of images: close features, identities and caches apart."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import compose_config
from PIL import Image

from captioner.build.checkpoint import load_captioner
from captioner.build.components import build_encoder
from captioner.build.trainer import build_trainer
from captioner.config import EncoderConfig
from captioner.data.captions import CaptionedImage
from captioner.errors import CheckpointError, ConfigError
from captioner.features.source import CachedFeatures, ImageFeatures, choose_reader
from captioner.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path) -> list[CaptionedImage]:
    """Five JPEGs."""
    (tmp_path / "images").mkdir()
    found = []
    for row in range(5):
        coarse = np.random.default_rng(row).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path = tmp_path / "images" / f"{row}.jpg"
        Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC).save(path)
        found.append(CaptionedImage(name=path.name, path=path, captions=("a",), image_id=row))
    return found


def readers(cache: Path) -> tuple[ImageFeatures, ImageFeatures]:
    """By Pillow and by torchvision, of one encoder."""
    config = EncoderConfig(kind="plain", name="plain_small", weights="random", size=32)
    encoder = build_encoder(config, seed=0)
    pil = ImageFeatures(encoder=encoder, device=CPU, cache_dir=str(cache), batch_size=2)
    return pil, dataclasses.replace(pil, reader="torchvision")


def test_features_are_close_and_kept_apart(images: list[CaptionedImage], tmp_path: Path) -> None:
    pil, torchvision = readers(tmp_path / "cache")
    sources = [features.source(images) for features in (pil, torchvision)]
    assert all(isinstance(source, CachedFeatures) for source in sources)
    expected, found = (source(torch.tensor([4, 0, 2])) for source in sources)
    # Half precision: eight bits a product, four layers of them.
    assert 0 < (found - expected).abs().max() < 0.03 * expected.abs().max()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    image = Image.open(images[4].path)
    assert (torchvision.of_image(image) - found[:1]).abs().max() < 0.02 * found.abs().max()


def test_identities_differ_and_pils_is_as_it_was(tmp_path: Path) -> None:
    pil, torchvision = readers(tmp_path)
    assert pil.encoder is not None
    assert pil.identity() == {
        "kind": "frozen", "name": "plain_small", "fingerprint": pil.encoder.fingerprint()
    }  # fmt: skip
    assert torchvision.identity()["reader"] == "torchvision"
    assert torchvision.fingerprint != pil.fingerprint and len(torchvision.fingerprint) == 64


def test_auto_says_what_it_takes_on_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_reader("auto", CPU) == "pil" and not caplog.text
        assert choose_reader("auto", torch.device("cuda")) == "pil"
    assert "read by Pillow" in caplog.text
    assert choose_reader("torchvision", CPU) == "torchvision"


def test_a_trained_encoder_reads_by_pillow() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.train_from=stage1 trains it"):
        EncoderConfig(
            kind="plain", name="plain", weights="random", train_from="stage1", reader="torchvision"
        )
    with pytest.raises(ConfigError, match="did you mean 'torchvision'"):
        EncoderConfig(kind="plain", name="plain", weights="random", reader="torchvison")


def test_a_checkpoint_knows_its_reader(tmp_path: Path) -> None:
    overrides = [
        f"run_dir={tmp_path}/run", f"data.root={tmp_path}/scenes", f"encoder.cache_dir={tmp_path}",
        "data.train=8", "data.dev=4", "data.test=4", "data.size=32", "vocabulary.min_count=1",
        "encoder=plain", "encoder.name=plain_small", "encoder.size=32", "encoder.train_from=null",
        "encoder.reader=torchvision", "model.embedding_dim=8", "model.hidden_size=8",
        "trainer.epochs=1", "trainer.progress=false", "trainer.shown_pictures=1",
        "generation.max_length=5",
    ]  # fmt: skip
    build_trainer(compose_config("train", overrides, configs=CONFIGS)).run()
    path = tmp_path / "run" / "best.pt"
    assert load_captioner(path, device=CPU).features.reader == "torchvision"
    whole = load_checkpoint(path)
    identity = json.loads(whole.texts["encoder"])
    del identity["reader"]  # as if Pillow had read its images
    other = dataclasses.replace(whole, texts={**whole.texts, "encoder": json.dumps(identity)})
    save_checkpoint(tmp_path / "other.pt", other)
    with pytest.raises(CheckpointError, match="features of another encoder"):
        load_captioner(tmp_path / "other.pt", device=CPU)
