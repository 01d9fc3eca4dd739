"""Small models that attend to regions, and batches for them: what their tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captioner.data.packed import TokenStore
from captioner.models.adaptive_attention import AdaptiveAttention
from captioner.models.attention import AttentionSettings
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.language_model import LanguageModel, initialise
from captioner.models.layered_attention import LayeredAttention
from captioner.models.show_attend_tell import ShowAttendTell
from captioner.models.up_down import UpDown
from captioner.models.word_layers import DropoutRates, WordLayers
from captioner.ops.linear_cross_entropy import IGNORED

BOS, EOS, V = 1, 2, 11
F, R, IMAGES = 6, 5, 3  # widths of a region, regions, images
NONE = DropoutRates()
CAPTIONS = [[5, 6, 7], [8], [4, 5, 6, 7, 8], [9, 4], [6, 6, 10], [4, 9]]
IMAGE_OF = torch.tensor([2, 0, 0, 1, 1, 2])


def language_model(rates: DropoutRates, **other: Any) -> LanguageModel:
    sizes = {"vocab_size": V, "embedding_dim": 10, "hidden_size": 12}
    return LanguageModel(**sizes, dropout=rates, **other)


def layered(join: str = "concat", **rnn: Any) -> Callable[..., LayeredAttention]:
    def make(rates: DropoutRates, attention: dict[str, float], **image: Any) -> LayeredAttention:
        return LayeredAttention(
            language_model=language_model(rates, **rnn),
            attention=AttentionSettings(dim=8, heads=2, **attention),
            join=join,
            feature_dim=F,
            **image,
        )

    return make


def literature(kind: Callable[..., Any], **own: Any) -> Callable[..., BaseCaptioner]:
    """A model of word layers with additive attention."""

    def make(rates: DropoutRates, attention: dict[str, float], **image: Any) -> BaseCaptioner:
        words = WordLayers(vocab_size=V, embedding_dim=10, hidden_size=12, dropout=rates)
        settings = AttentionSettings(dim=8, **attention)
        made: BaseCaptioner = kind(words=words, attention=settings, feature_dim=F, **own, **image)
        return made

    return make


# Each makes a model of dropout rates, of region_dropout and weight_dropout, and of image settings.
MODELS: dict[str, Callable[..., BaseCaptioner]] = {
    "layered, concat": layered(),
    "layered, gate, two layers": layered("gate", num_layers=2),
    "layered, lstm": layered("lstm"),
    "layered, lstm, gru": layered("lstm", kind="gru"),
    "adaptive": literature(AdaptiveAttention),
    "show, attend and tell": literature(ShowAttendTell, doubly_stochastic=0.0),
    "up-down": literature(UpDown),
}


def make_model(
    name: str,
    rates: DropoutRates = NONE,
    attention: dict[str, float] | None = None,
    scale: float = 0.4,
    **image: Any,
) -> Any:
    torch.manual_seed(0)
    model = MODELS[name](rates, attention or {}, **image)
    initialise(model, scheme="uniform", scale=scale)
    return model


def make_batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """images, image_rows, inputs, batch_sizes and targets of all captions."""
    images = torch.randn(IMAGES, R, F, generator=torch.Generator().manual_seed(1)).to(dtype)
    tokens, order = TokenStore(CAPTIONS, bos=BOS, eos=EOS).pack(torch.arange(len(CAPTIONS)))
    return images, IMAGE_OF[order], tokens.inputs, tokens.batch_sizes, tokens.targets


def padded(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The batch in the static-shape form: nine rows, two steps and three sequences more."""
    images, rows, inputs, sizes, targets = batch
    return (
        images,
        torch.cat([rows, torch.arange(IMAGES)]),
        torch.cat([inputs, torch.zeros(9, dtype=torch.int64)]),
        torch.cat([sizes, torch.zeros(2, dtype=torch.int64)]),
        torch.cat([targets, torch.full((9,), IGNORED)]),
    )
