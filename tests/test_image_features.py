"""The two readers of pictures: close features, identities and caches apart."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.build import build_encoder
from captioner.config import EncoderConfig
from captioner.data.captions import CaptionedImage
from captioner.errors import ConfigError
from captioner.image_features import CachedFeatures, ImageFeatures, choose_reader

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
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


def ways(cache: Path) -> tuple[ImageFeatures, ImageFeatures]:
    """By Pillow and by torchvision, of one encoder."""
    config = EncoderConfig(kind="plain", name="plain_small", weights="random", size=32)
    encoder = build_encoder(config, seed=0)
    pil = ImageFeatures(encoder=encoder, device=CPU, cache_dir=str(cache), batch_size=2)
    return pil, dataclasses.replace(pil, reader="torchvision")


def test_features_are_close_and_kept_apart(images: list[CaptionedImage], tmp_path: Path) -> None:
    pil, torchvision = ways(tmp_path / "cache")
    sources = [way.source(images) for way in (pil, torchvision)]
    assert all(isinstance(source, CachedFeatures) for source in sources)
    expected, found = (source(torch.tensor([4, 0, 2])) for source in sources)
    # Half precision: eight bits a product, four layers of them.
    assert 0 < (found - expected).abs().max() < 0.03 * expected.abs().max()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    picture = Image.open(images[4].path)
    assert (torchvision.of_picture(picture) - found[:1]).abs().max() < 0.02 * found.abs().max()


def test_identities_differ_and_pils_is_as_it_was(tmp_path: Path) -> None:
    pil, torchvision = ways(tmp_path)
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
