"""Maps of written captions: each word's is the step's that chose it, laid out on the grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attention_models import BOS, EOS, IMAGES, MODELS, F, make_model
from torch import Tensor

from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.inference.attention import CaptionMaps, RegionGrid, caption_maps
from captioner.inference.captions import Caption
from captioner.models.captioner import Captioner
from captioner.models.ensemble import Ensemble
from captioner.models.language_model import LanguageModel

WORDS = ["a", "dog", "cat", "runs", "sits", "on", "mat"]
VOCABULARY = Vocabulary(WORDS, counts=[1] * 11)
PAD, UNK = 0, 3
ROWS, COLUMNS = 2, 3
GRID = RegionGrid(ROWS, COLUMNS, 0.875)
IMAGE_FEATURES = torch.randn(IMAGES, ROWS * COLUMNS, F, generator=torch.Generator().manual_seed(3))
# Of three images: three captions of different lengths, one, and one that is empty with another.
TOKENS = [[(4, 5, 7), (4, UNK), (6, 4, 9, 9, 10)], [(10,)], [(), (5, 8)]]


def captions(tokens: list[list[tuple[int, ...]]]) -> list[list[Caption]]:
    return [
        [
            Caption(
                text=" ".join(VOCABULARY.decode(one)),
                words=tuple((word, 0.5) for word in VOCABULARY.decode(one)),
                log_prob=-1.0,
                finished=True,
                token_ids=one,
            )
            for one in of_image
        ]
        for of_image in tokens
    ]


def by_hand(model: Any, image: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """The weights of each step of one caption alone, [T, R] or [T, R + 1]."""
    read = torch.tensor([BOS, *tokens, EOS][: len(tokens)])
    sizes = torch.ones(len(read), dtype=torch.int64)
    with torch.no_grad():
        found: Tensor = model.eval().attention_maps(
            image[None], torch.zeros(1, dtype=torch.int64), read, sizes
        )
    return found


def found_maps(model: Any, tokens: list[list[tuple[int, ...]]] = TOKENS) -> list[list[CaptionMaps]]:
    return caption_maps(model, VOCABULARY, GRID, IMAGE_FEATURES, captions(tokens))


@pytest.mark.parametrize("name", MODELS)
def test_every_caption_has_the_maps_that_it_has_alone(name: str) -> None:
    model = make_model(name).train()
    for image, maps, of_image in zip(IMAGE_FEATURES, found_maps(model), TOKENS, strict=True):
        assert len(maps) == len(of_image)
        for one, tokens in zip(maps, of_image, strict=True):
            assert one.weights.shape == (len(tokens), ROWS, COLUMNS)
            if not tokens:
                continue
            expected = by_hand(model, image, tokens).numpy()
            rows = expected[:, : ROWS * COLUMNS].reshape(-1, ROWS, COLUMNS)
            np.testing.assert_allclose(one.weights, rows, atol=1e-6)
            total = one.weights.sum((1, 2))
            if one.sentinel is not None:
                np.testing.assert_allclose(one.sentinel, expected[:, -1], atol=1e-6)
                total = total + one.sentinel
            np.testing.assert_allclose(total, 1.0, atol=1e-5)
    assert (found_maps(model)[0][0].sentinel is None) == (name != "adaptive")


def test_a_word_is_the_step_that_chose_it_and_later_words_do_not_matter() -> None:
    model = make_model("layered, lstm", scale=1.5)
    image = IMAGE_FEATURES[:1]
    told = captions([[(4, 5, 6), (4, 5, 9), (7, 5, 6)]])
    first, other_end, other_start = caption_maps(model, VOCABULARY, GRID, image, told)[0]
    np.testing.assert_array_equal(first.weights[0], other_start.weights[0])
    assert not np.allclose(first.weights[1], other_start.weights[1], atol=1e-4)
    np.testing.assert_allclose(first.weights, other_end.weights, atol=1e-6)


def test_special_tokens_are_no_words() -> None:
    model = make_model("adaptive")
    maps = caption_maps(model, VOCABULARY, GRID, IMAGE_FEATURES[:1], captions([[(4, PAD, 5, UNK)]]))
    expected = by_hand(model, IMAGE_FEATURES[0], (4, PAD, 5, UNK))[[0, 2, 3]]
    np.testing.assert_allclose(
        maps[0][0].weights.reshape(3, -1), expected[:, : ROWS * COLUMNS].numpy(), atol=1e-6
    )


def test_what_has_no_maps_is_refused_in_a_sentence() -> None:
    pooled = Captioner(
        language_model=LanguageModel(vocab_size=11, embedding_dim=5, hidden_size=5), feature_dim=F
    )
    attending = make_model("layered, gate, two layers")
    with pytest.raises(ConfigError, match="no attention maps: Captioner does not attend"):
        found_maps(pooled)
    with pytest.raises(ConfigError, match="no attention maps: Ensemble"):
        found_maps(Ensemble([attending, attending]))
    with pytest.raises(ConfigError, match="2 x 4 cells, and the model has weights of 6 regions"):
        grid = replace(GRID, columns=4)
        caption_maps(attending, VOCABULARY, grid, IMAGE_FEATURES, captions(TOKENS))


def test_regions_of_ones_own_must_form_a_square() -> None:
    assert RegionGrid.square(49) == RegionGrid(7, 7)
    with pytest.raises(ConfigError, match="50 regions of features of your own are no square"):
        RegionGrid.square(50)
