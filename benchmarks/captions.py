"""Captions, features and image files to measure on: Flickr8k where it is given, else its likeness.

Shapes: n images, F image feature.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lengths import caption_lengths, word_ranks
from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset
from captioner.data.formats.flickr8k import load_flickr8k
from captioner.data.tokenize import tokenize
from captioner.data.vocabulary import Vocabulary
from captioner.errors import DataError
from captioner.features.store import FeatureStore

CAPTIONS_EACH = 5
MAX_LENGTH = 50  # words of a caption that are trained on


def synthetic_images(count: int, *, seed: int, prefix: str = "train") -> list[CaptionedImage]:
    """Images with five captions each of words drawn by Zipf's law; there are no image files."""
    lengths = caption_lengths(count * CAPTIONS_EACH, seed=seed)
    drawn = word_ranks(int(lengths.sum()), seed=seed)
    captions = [
        " ".join(f"word{rank}" for rank in part)
        for part in np.split(drawn, lengths.cumsum()[:-1].tolist())
    ]
    names = [f"{prefix}{row}.jpg" for row in range(count)]
    each = CAPTIONS_EACH
    return [
        CaptionedImage(name, Path(name), tuple(captions[each * row : each * (row + 1)]), row)
        for row, name in enumerate(names)
    ]


def captioned_images(
    count: int, *, data_root: str | None, seed: int, split: str = "train"
) -> list[CaptionedImage]:
    """The first `count` images of Flickr8k in `data_root`, or as many synthetic ones.

    DataError when the split has fewer.
    """
    if data_root is None:
        return synthetic_images(count, seed=seed + (split != "train"), prefix=split)
    images = load_flickr8k(data_root).split(split)
    if len(images) < count:
        raise DataError(f"{data_root} has {len(images)} images in {split}, {count} are wanted")
    return list(images[:count])


def build_vocabulary(images: Sequence[CaptionedImage]) -> Vocabulary:
    """The vocabulary as a training run builds it: words that occur five times."""
    return Vocabulary.build(tokenize(caption) for image in images for caption in image.captions)


def random_features(
    images: Sequence[CaptionedImage], feature_dim: int, *, seed: int
) -> FeatureStore:
    """Features [n, 1, F] of mean 0 and deviation 1, evenly spread: none needs to be clamped."""
    edge = 3**0.5
    generator = np.random.default_rng([seed, 2])
    values = generator.random((len(images), 1, feature_dim), np.float32) * (2 * edge) - edge
    return FeatureStore([image.name for image in images], values)


@dataclass(frozen=True)
class Workload:
    """What to train on: `images` of Flickr8k in `data_root`, or as many synthetic ones.

    features: an .npy file [at least images, 1, F], memory-mapped; None draws them. vocabulary: at
    least so many words, of which the captions may not have all.
    """

    images: int
    feature_dim: int
    data_root: str | None = None
    seed: int = 0
    features: str | None = None
    vocabulary: int = 0


@dataclass(frozen=True)
class TrainingData:
    """A workload, loaded."""

    images: list[CaptionedImage]
    vocabulary: Vocabulary
    vocab_size: int
    store: FeatureStore
    dataset: CaptionDataset

    @property
    def features(self) -> Tensor:
        """[n, 1, F]."""
        return torch.from_numpy(self.store.features)

    @property
    def tokens(self) -> int:
        """What all captions have to predict."""
        return int(self.dataset.store.lengths.sum())


@lru_cache(maxsize=1)
def load_workload(workload: Workload) -> TrainingData:
    """The same data for the same workload."""
    images = captioned_images(workload.images, data_root=workload.data_root, seed=workload.seed)
    vocabulary = build_vocabulary(images)
    if workload.features is None:
        store = random_features(images, workload.feature_dim, seed=workload.seed)
    else:
        mapped = np.load(workload.features, mmap_mode="r")[: len(images)]
        store = FeatureStore([image.name for image in images], mapped)
    dataset = CaptionDataset(
        images, vocabulary=vocabulary, source=store.gather, max_length=MAX_LENGTH
    )
    vocab_size = max(len(vocabulary), workload.vocabulary)
    return TrainingData(images, vocabulary, vocab_size, store, dataset)


class Endless:
    """The batches of one epoch after another."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order

    def __iter__(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            self.order.epoch = epoch
            yield from self.order
