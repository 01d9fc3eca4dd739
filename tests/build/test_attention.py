"""Where regions lie on an image, by encoder; and one sentence where there are no maps."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_models import R, make_model

from captioner.build.attention import attention_views, find_grid, region_grid
from captioner.errors import ConfigError
from captioner.features.source import ImageFeatures
from captioner.inference.attention import RegionGrid
from captioner.models.captioner import Captioner
from captioner.models.encoders import make_encoder
from captioner.models.language_model import LanguageModel


def features(**encoder: Any) -> ImageFeatures:
    made = make_encoder("plain", "plain_small", weights="random", output="grid", **encoder)
    return ImageFeatures(encoder=made, device=torch.device("cpu"))


OWN = ImageFeatures(encoder=None, device=torch.device("cpu"))


def model(regions: int) -> Any:
    return make_model("layered, concat", regions=regions)


def test_the_grid_is_the_encoders() -> None:
    assert region_grid(model(64), features()) == RegionGrid(8, 8)
    assert region_grid(model(16), features(grid_size=4)) == RegionGrid(4, 4)
    assert region_grid(model(36), features(size=48, resize=64)) == RegionGrid(6, 6, 0.75)


def test_regions_of_ones_own_are_a_square_grid_or_none(caplog: pytest.LogCaptureFixture) -> None:
    assert region_grid(model(49), OWN) == RegionGrid(7, 7)
    with caplog.at_level(logging.INFO):
        assert find_grid(model(R), OWN) is None
    assert "no attention maps: 5 regions of features of your own are no square" in caplog.text


def test_what_has_no_maps_says_so_in_a_sentence() -> None:
    words = LanguageModel(vocab_size=11, embedding_dim=5, hidden_size=5)
    with pytest.raises(ConfigError, match="Captioner does not attend to the regions"):
        region_grid(Captioner(language_model=words, feature_dim=6), features())
    with pytest.raises(ConfigError, match="one region, its pooled features"):
        region_grid(model(1), replace(OWN))


def test_training_a_pooled_captioner_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    class Generator:
        model = Captioner(
            language_model=LanguageModel(vocab_size=11, embedding_dim=5, hidden_size=5),
            feature_dim=6,
        )

    with caplog.at_level(logging.INFO):
        generator: Any = Generator()
        source: Any = None
        assert attention_views(generator, OWN, [], source, batch_size=2, scenes=False) is None
    assert not caplog.text
