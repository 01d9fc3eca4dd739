"""Where a captioner looked for each word of a caption that it wrote.

A second pass over the finished caption, its words given, has the weights of every step: what a step
attends to depends on the image and on the words before it alone.

Letters: I images, R regions, h w the grid's sides (R = h w), N packed tokens, C captions, T longest
length, W words of a caption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from captioner.data.packed import TokenStore
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError

if TYPE_CHECKING:
    from captioner.inference.captions import Caption


@runtime_checkable
class AttentionModel(Protocol):
    """A model that attends to regions."""

    def attention_maps(
        self, images: Tensor, image_rows: Tensor, token_ids: Tensor, batch_sizes: Tensor
    ) -> Tensor:
        """Weights of the packed tokens' steps, [N, R], or [N, R + 1] with a sentinel last."""


@dataclass(frozen=True)
class RegionGrid:
    """How regions lie on an image: `rows` x `columns` cells, row after row, over what the encoder
    sees: a centred square, whose side is `crop` times the image's shorter one, or all (None)."""

    rows: int
    columns: int
    crop: float | None = None

    @classmethod
    def square(cls, regions: int) -> RegionGrid:
        """As many rows as columns over the whole image; ConfigError if `regions` is no square."""
        side = math.isqrt(regions)
        if side * side != regions:
            raise ConfigError(
                f"there are no attention maps: {regions} regions of features of your own are no "
                "square grid, and nothing says where on the image they lie"
            )
        return cls(side, side)


@dataclass(frozen=True)
class CaptionMaps:
    """Of each word of a caption the weights on the cells, [W, h, w], and, of a model that has one,
    the weight on the sentinel, [W]: together 1."""

    weights: np.ndarray
    sentinel: np.ndarray | None
    grid: RegionGrid


def refuse_without_attention(model: nn.Module) -> None:
    """ConfigError for a model that has no attention maps."""
    if not isinstance(model, AttentionModel):
        raise ConfigError(
            f"there are no attention maps: {type(model).__name__} does not attend to the regions "
            "of an image"
        )


@torch.inference_mode()
def caption_maps(
    model: nn.Module,
    vocabulary: Vocabulary,
    grid: RegionGrid,
    images: Tensor | tuple[Tensor, ...],  # [I, R, F] or [I, 3, S, S]
    captions: Sequence[Sequence[Caption]],  # of each image
) -> list[list[CaptionMaps]]:
    """The maps of every caption of every image; the model is put into evaluation mode for it.

    ConfigError for a model without attention, or with other regions than the grid has cells.
    """
    refuse_without_attention(model)
    assert isinstance(images, Tensor)  # the tuples are an ensemble's
    model.eval()
    sentences = [one.token_ids for found in captions for one in found]
    image_of = torch.tensor([row for row, found in enumerate(captions) for _ in found])
    store = TokenStore(sentences, bos=vocabulary.bos, eos=vocabulary.eos)
    packed, order = store.pack(torch.arange(len(sentences)))
    device = next(model.parameters()).device
    weights: Tensor = model.attention_maps(  # type: ignore[operator]
        images.to(device),
        image_of[order].to(device),
        packed.inputs.to(device),
        packed.batch_sizes,
    )
    padded, _ = pad_packed_sequence(PackedSequence(weights.float().cpu(), packed.batch_sizes))
    by_caption = iter(padded[:, order.argsort()].unbind(1))  # each [T, R] or [T, R + 1]
    return [[_maps(one, next(by_caption), vocabulary, grid) for one in of] for of in captions]


def _maps(
    caption: Caption, weights: Tensor, vocabulary: Vocabulary, grid: RegionGrid
) -> CaptionMaps:
    """`weights` [T, R] or [T, R + 1] laid out; row t chose token t, and special tokens are none of
    the caption's words."""
    cells = grid.rows * grid.columns
    if weights.shape[1] not in (cells, cells + 1):
        raise ConfigError(
            f"there are no attention maps: the grid has {grid.rows} x {grid.columns} cells, and "
            f"the model has weights of {weights.shape[1]} regions (a sentinel counted as one)"
        )
    steps = [t for t, token in enumerate(caption.token_ids) if vocabulary.decode([token])]
    rows = weights[steps].numpy()
    sentinel = rows[:, cells] if rows.shape[1] > cells else None
    return CaptionMaps(rows[:, :cells].reshape(-1, grid.rows, grid.columns), sentinel, grid)
