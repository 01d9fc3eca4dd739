"""How long captions are and which words they have, drawn as Flickr8k's: needs only numpy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from captioner.errors import DataError

# Flickr8k's captions in words: mean 10.8, 99th percentile 22, longest 37; 2,540 frequent words.
SHAPE, MEAN, LONGEST, WORDS = 8.0, 10.8, 37, 2540
READ_FIRST = 2  # the image and <bos> come before a caption's words
DRAWN = 10_000
OUTLIER, SHORT = 64, 8  # steps of the one long sequence, and of all others
DISTRIBUTIONS = ("flickr8k", "equal", "outlier")


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
    """Steps [B] that an LSTM takes over each sequence of a batch, image and <bos> included.

    "flickr8k": captions of `data_root`'s training split where it is given, otherwise drawn ones;
    "equal": all of Flickr8k's mean length; "outlier": one long sequence among short ones.
    """
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
    from captioner.data.formats.flickr8k import load_flickr8k  # a bare machine has no captions
    from captioner.data.tokenize import tokenize

    images = load_flickr8k(data_root).split("train")
    return np.array([len(tokenize(text)) for image in images for text in image.captions])
