"""A training set to measure on where neither pictures nor captions are.

Shapes: n images, F image feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.workload import (
    MAX_LENGTH,
    build_vocabulary,
    random_features,
    synthetic_images,
)
from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset
from captioner.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class DrawnCaptions:
    """Captions of Flickr8k's lengths and word frequencies, with features of mean 0, deviation 1."""

    images: list[CaptionedImage]
    vocabulary: Vocabulary
    features: Tensor  # [n, 1, F]
    dataset: CaptionDataset

    @property
    def tokens(self) -> int:
        """What all captions have to predict."""
        return int(self.dataset.store.lengths.sum())

    def order(self, batch_size: int, *, seed: int) -> BatchOrder:
        """The order in which every side visits the captions."""
        return BatchOrder(len(self.dataset), batch_size=batch_size, seed=seed)


@lru_cache(maxsize=1)
def draw_captions(images: int, feature_dim: int, *, seed: int) -> DrawnCaptions:
    """`images` images with five captions each; the same for the same seed."""
    drawn = synthetic_images(images, seed=seed)
    vocabulary = build_vocabulary(drawn)
    features = torch.from_numpy(random_features(drawn, feature_dim, seed=seed).features)
    dataset = CaptionDataset(
        drawn, vocabulary=vocabulary, source=lambda rows: features[rows], max_length=MAX_LENGTH
    )
    return DrawnCaptions(drawn, vocabulary, features, dataset)
