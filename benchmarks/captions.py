"""Captions and features [n, R, F] of n images to measure on: Flickr8k's, or their likeness."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset
from captioner.data.formats.flickr8k import load_flickr8k
from captioner.data.tokenize import tokenize
from captioner.data.vocabulary import Vocabulary
from captioner.errors import DataError
from captioner.features.store import FeatureStore

CAPTIONS_EACH = 5
MAX_LENGTH = 50  # words of a caption that are trained on
# Flickr8k's captions in words: mean 10.8, 99th percentile 22, longest 37; 2,540 frequent words.
SHAPE, MEAN, LONGEST, WORDS = 8.0, 10.8, 37, 2540
READ_FIRST = 2  # the image and <bos> come before a caption's words
DRAWN = 10_000
OUTLIER, SHORT = 64, 8  # steps of the one long sequence, and of all others


def caption_lengths(count: int, *, seed: int) -> np.ndarray:
    """Lengths in words [count] as Flickr8k's captions have them, the longest among them."""
    drawn = np.random.default_rng(seed).gamma(SHAPE, MEAN / SHAPE, count)
    lengths = np.clip(np.rint(drawn), 2, LONGEST).astype(np.int64)
    lengths[0] = LONGEST
    return lengths


def word_ranks(count: int, *, seed: int) -> np.ndarray:
    """Words [count] by Zipf's law: 0 is the most frequent of WORDS."""
    chances = 1 / (np.arange(WORDS) + 2.7)  # Mandelbrot's shift: no word is a third of the text
    generator = np.random.default_rng([seed, 1])
    return generator.choice(WORDS, size=count, p=chances / chances.sum())


def steps_of_sequences(
    distribution: str, batch: int, *, seed: int, data_root: str | None = None
) -> np.ndarray:
    """Steps [B] of an LSTM over each sequence, image and <bos> included: of captions as Flickr8k's
    (or its own, of `data_root`), all of their mean length, or one long among short ones."""
    if distribution == "equal":
        return np.full(batch, round(MEAN) + READ_FIRST)
    if distribution == "outlier":
        return np.array([OUTLIER, *[SHORT] * (batch - 1)])
    if data_root is None:
        return caption_lengths(max(DRAWN, batch + 1), seed=seed)[1 : batch + 1] + READ_FIRST
    words = _real_lengths(data_root)
    if len(words) < batch:
        raise DataError(f"{data_root} has {len(words)} captions to train on, {batch} are wanted")
    return np.random.default_rng(seed).choice(words, batch, replace=False) + READ_FIRST


@lru_cache(maxsize=1)
def _real_lengths(data_root: str) -> np.ndarray:
    """Every training caption's length in words."""
    images = load_flickr8k(data_root).split("train")
    return np.array([len(tokenize(text)) for image in images for text in image.captions])


def synthetic_images(count: int, *, seed: int, prefix: str = "train") -> list[CaptionedImage]:
    """Images with five captions each of words drawn by Zipf's law; there are no image files."""
    lengths = caption_lengths(count * CAPTIONS_EACH, seed=seed)
    words = np.split(word_ranks(int(lengths.sum()), seed=seed), lengths.cumsum()[:-1].tolist())
    captions = [" ".join(f"word{rank}" for rank in part) for part in words]
    images = []
    for row in range(count):
        name, own = f"{prefix}{row}.jpg", captions[CAPTIONS_EACH * row :][:CAPTIONS_EACH]
        images.append(CaptionedImage(name, Path(name), tuple(own), row))
    return images


def captioned_images(
    count: int, *, data_root: str | None, seed: int, split: str = "train"
) -> list[CaptionedImage]:
    """The first `count` images of Flickr8k, or DataError where it has fewer; or synthetic ones."""
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
    """Images and captions as `captioned_images` has them; features: a memory-mapped .npy file [at
    least images, R, F], None draws [images, 1, F]; vocabulary: the least number of words of the
    model; counted: the least number of images in whose captions words are counted; by_image: as of
    CaptionDataset."""

    images: int
    feature_dim: int
    data_root: str | None = None
    seed: int = 0
    features: str | None = None
    vocabulary: int = 0
    counted: int = 0
    by_image: bool = False


@dataclass(frozen=True)
class TrainingData:
    """A workload, loaded."""

    vocabulary: Vocabulary
    vocab_size: int
    store: FeatureStore
    dataset: CaptionDataset

    @property
    def features(self) -> Tensor:
        """[n, R, F]."""
        return torch.from_numpy(self.store.features)

    @property
    def tokens(self) -> int:
        """What all captions have to predict."""
        return int(self.dataset.store.lengths.sum())


@lru_cache(maxsize=1)
def load_workload(workload: Workload) -> TrainingData:
    """The same data for the same workload."""
    wanted = max(workload.images, workload.counted)
    images = captioned_images(wanted, data_root=workload.data_root, seed=workload.seed)
    vocabulary = build_vocabulary(images)
    images = images[: workload.images]
    if workload.features is None:
        store = random_features(images, workload.feature_dim, seed=workload.seed)
    else:
        mapped = np.load(workload.features, mmap_mode="c")[: len(images)]
        store = FeatureStore([image.name for image in images], mapped)
    dataset = CaptionDataset(
        images,
        vocabulary=vocabulary,
        source=store.gather,
        max_length=MAX_LENGTH,
        by_image=workload.by_image,
    )
    return TrainingData(vocabulary, max(len(vocabulary), workload.vocabulary), store, dataset)


def endless(order: BatchOrder, batches: Iterable[Any] | None = None) -> Iterator[Any]:
    """The batches of one epoch after another: rows of `order`, or what `batches` make of them."""
    for epoch in itertools.count():
        order.epoch = epoch
        yield from order if batches is None else batches


def caption_batches(order: BatchOrder, dataset: CaptionDataset) -> Iterator[list[int]]:
    """The captions of one batch after another, without end, whatever a row of `order` is."""
    for rows in endless(order):
        captions = dataset.captions_by_row[rows].flatten()
        yield captions[captions >= 0].tolist()
