"""The steps that ONNX takes are the models' own, beams of an image in a row."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
import torch
from attention_models import IMAGES, MODELS, F, R, V, make_batch, make_model
from torch import Tensor, nn

from captioner.build.models import KINDS
from captioner.errors import ConfigError
from captioner.export.plain_attention import PlainAttention
from captioner.export.plain_captioners import PLAIN_STEPS, plain_step
from captioner.generation.hypothesis import select_rows
from captioner.models.attention import AdditiveAttention, MultiHeadAttention, RegionAttention
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.captioner import Captioner
from captioner.models.language_model import LanguageModel
from captioner.models.token_groups import group_by_image

BEAMS = 2
ROWS = torch.arange(IMAGES).repeat_interleave(BEAMS)  # the image of each row
PARENTS = torch.tensor([1, 0, 2, 2, 5, 4])  # as a search reorders beams, within their images


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_plain_step_is_the_models_step(name: str) -> None:
    model = make_model(name).double().eval()
    images = make_batch(torch.float64)[0]
    plain = plain_step(model, beam_size=BEAMS)
    state, memory = plain.start(images)
    state = tuple(one.index_select(1, ROWS) for one in state)
    expected = select_rows(model.start(images), ROWS)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        token_ids = torch.randint(V, ROWS.shape, generator=generator)
        found, state = plain(token_ids, state, memory)
        wanted, expected = model.step(token_ids, expected)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        state = tuple(one.index_select(1, PARENTS) for one in state)
        expected = select_rows(expected, PARENTS)


def test_other_cells_have_no_plain_step() -> None:
    words = LanguageModel(vocab_size=V, embedding_dim=5, hidden_size=4, kind="layer_norm_lstm")
    with pytest.raises(ConfigError, match=r"rnn\.kind .* no form of \(LayerNormLSTM\)"):
        plain_step(Captioner(language_model=words, feature_dim=F), beam_size=BEAMS)


def attention(kind: Any, **other: Any) -> RegionAttention:
    torch.manual_seed(4)
    made: RegionAttention = kind(query_dim=5, region_dim=F, dim=8, sentinel_dim=F, **other)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.double().eval()


@pytest.mark.parametrize(
    "attention",
    [attention(MultiHeadAttention, heads=4), attention(AdditiveAttention)],
    ids=["multi-head", "additive"],
)
@pytest.mark.parametrize("sentinel", [False, True])
@torch.no_grad()
def test_plain_attention_is_attention(attention: RegionAttention, sentinel: bool) -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    memory = attention.memory(random(IMAGES, R, F))
    queries, sentinels = random(len(ROWS), 5), random(len(ROWS), F) if sentinel else None
    found = PlainAttention(attention, BEAMS)(queries, memory.keys, memory.values, sentinels)
    groups = group_by_image(ROWS, images=IMAGES)
    expected = attention(queries, memory, groups, sentinels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_kind_of_captioner_can_be_exported() -> None:
    kinds = {get_type_hints(make)["return"] for make in KINDS.values()}
    assert kinds == set(PLAIN_STEPS) == {type(make_model(name)) for name in MODELS} | {Captioner}


def test_a_model_that_is_not_known_is_named() -> None:
    class Another(BaseCaptioner):  # type: ignore[misc]
        """No kind of this package."""

    Another.__abstractmethods__ = frozenset()  # type: ignore[misc]
    known = ", ".join(one.__name__ for one in PLAIN_STEPS)
    with pytest.raises(ConfigError, match=f"{known}, not Another"):
        plain_step(Another(feature_dim=F), beam_size=1)
