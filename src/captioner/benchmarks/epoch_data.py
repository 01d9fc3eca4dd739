"""A training set to measure on where neither pictures nor captions are: needs torch and numpy only.

Shapes: n images, C captions (five an image), F image feature, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captioner.benchmarks.lengths import WORDS, caption_lengths, word_ranks
from captioner.data.packed import TokenStore
from captioner.data.vocabulary import SPECIAL, Vocabulary

CAPTIONS_EACH = 5


@dataclass(frozen=True)
class DrawnCaptions:
    """Captions of Flickr8k's lengths and word frequencies, with features of mean 0, deviation 1."""

    vocabulary: Vocabulary
    features: Tensor  # [n, 1, F]
    captions: list[list[int]]  # C lists of word numbers, without <bos> and <eos>
    image_rows: Tensor  # [C]
    store: TokenStore

    @property
    def tokens(self) -> int:
        """What all captions have to predict."""
        return int(self.store.lengths.sum())

    def references(self) -> list[list[str]]:
        """Each image's captions as text."""
        texts = [" ".join(self.vocabulary.decode(ids)) for ids in self.captions]
        return [texts[i : i + CAPTIONS_EACH] for i in range(0, len(texts), CAPTIONS_EACH)]


def draw_captions(images: int, feature_dim: int, *, seed: int) -> DrawnCaptions:
    """`images` images with five captions each; the same for the same seed."""
    lengths = caption_lengths(images * CAPTIONS_EACH, seed=seed)
    words = word_ranks(int(lengths.sum()), seed=seed)
    counts = np.bincount(words, minlength=WORDS)
    vocabulary = Vocabulary(
        [f"word{rank}" for rank in range(WORDS)],
        counts=[0, 0, len(lengths), 0, *counts.tolist()],  # an <eos> ends every caption
    )
    parts = np.split(words + len(SPECIAL), lengths.cumsum()[:-1])
    captions = [part.tolist() for part in parts]
    edge = 3**0.5
    drawn = np.random.default_rng([seed, 2]).random((images, 1, feature_dim), np.float32)
    return DrawnCaptions(
        vocabulary=vocabulary,
        features=torch.from_numpy(drawn * np.float32(2 * edge) - np.float32(edge)),
        captions=captions,
        image_rows=torch.arange(images).repeat_interleave(CAPTIONS_EACH),
        store=TokenStore(captions, bos=vocabulary.bos, eos=vocabulary.eos),
    )


def batches_of(captions: int, batch_size: int, *, seed: int) -> Iterator[list[int]]:
    """Batches of row numbers, one shuffled pass after another, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(captions, generator=generator).split(batch_size):
            yield rows.tolist()
