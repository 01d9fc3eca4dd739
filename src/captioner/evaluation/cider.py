"""CIDEr-D, which coco-caption prints as CIDEr, and the unclipped CIDEr (Vedantam et al. 2015).

Legend: I images, D different n-grams. A weight is count x (log I - log document frequency); the
document frequency of an n-gram is the number of images one of whose references has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from captioner.errors import DataError
from captioner.evaluation.metric import Metric, mean_metric
from captioner.evaluation.ngrams import ORDERS, Corpus, Floats, Ints, count_ngrams, find
from captioner.files import read_json, write_json
from captioner.restore import Size, restore

SIGMA = 6.0  # words: the width of CIDEr-D's length penalty


class _Table(TypedDict):
    """What is stored of document frequencies."""

    images: Size
    ngrams: dict[str, int]


@dataclass(frozen=True)
class DocumentFrequencies:
    """How many of `images` images have an n-gram (words joined by spaces) in a reference.

    N-grams of one image only may be missing: they count the same as n-grams of none.
    """

    images: int
    counts: Mapping[str, int]

    @classmethod
    def of(cls, references: Iterable[Sequence[Sequence[str]]]) -> DocumentFrequencies:
        """The table of tokenised references, one list of them an image."""
        counts: Counter[str] = Counter()
        images = 0
        for of_image in references:
            images += 1
            ngrams = {
                " ".join(tokens[at : at + order])
                for tokens in of_image
                for order in ORDERS
                for at in range(len(tokens) - order + 1)
            }
            counts.update(ngrams)
        return cls(images, {ngram: count for ngram, count in counts.items() if count > 1})

    def save(self, path: Path | str) -> None:
        """Write the table as JSON, atomically."""
        write_json(path, {"images": self.images, "ngrams": dict(self.counts)})

    @classmethod
    def load(cls, path: Path | str) -> DocumentFrequencies:
        """Read a saved table; DataError naming the file when it is none."""
        content: _Table = restore(_Table, read_json(path), str(path))
        images, counts = content["images"], content["ngrams"]
        wrong = [k for k, v in counts.items() if not 0 < v <= images]
        if wrong:
            raise DataError(
                f"{path}: {wrong[0]!r} is said to be in {counts[wrong[0]]!r} of {images} images"
            )
        return cls(images, counts)


def cider(corpus: Corpus, table: DocumentFrequencies | None = None) -> list[Metric]:
    """CIDEr-D and CIDEr-unclipped in percent (100 times coco-caption's figure; at most 1000).

    Document frequencies are those of the references unless a `table` is given. With those of a
    single image every weight, and so the score, is 0: as in coco-caption.
    """
    images = table.images if table else len(corpus)
    totals = np.zeros((2, len(corpus)))
    for order in ORDERS:
        frequencies = _from_table(corpus, table, order) if table else _count(corpus, order)
        parts = [_similarity(part, order, images, frequencies) for part in corpus.chunks()]
        totals += np.concatenate(parts, axis=1)
    clipped, plain = 1000.0 * totals / len(ORDERS)
    return [mean_metric("CIDEr-D", clipped), mean_metric("CIDEr-unclipped", plain)]


# -- document frequencies: sorted keys, and how many images each is in --------------------------


def _count(corpus: Corpus, order: int) -> tuple[Ints, Ints]:
    """Keys in two or more images' references."""
    keys, counts = [], []
    for part in corpus.chunks():
        sentence, key = part.keys(part.references, order)
        different, number = np.unique(key, return_inverse=True)
        both = np.unique(number * len(part) + part.image_of_reference()[sentence])
        keys.append(different)
        counts.append(np.bincount(both // len(part), minlength=len(different)))
    different, number = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.bincount(number, weights=np.concatenate(counts)).astype(np.int64)
    return different[total > 1], total[total > 1]


def _from_table(corpus: Corpus, table: DocumentFrequencies, order: int) -> tuple[Ints, Ints]:
    """The entries of a saved table whose words all occur in the corpus, by the corpus's keys."""
    rows, counts = [], []
    for ngram, count in table.counts.items():
        words = ngram.split(" ")
        if len(words) == order and all(word in corpus.vocabulary for word in words):
            rows.append([corpus.vocabulary[word] for word in words])
            counts.append(count)
    keys, possible = corpus.keys_of(np.array(rows, np.int64).reshape(-1, order))
    by_key = np.argsort(keys[possible])
    return keys[possible][by_key], np.array(counts, np.int64)[possible][by_key]


# -- similarity ---------------------------------------------------------------------------------


def _similarity(part: Corpus, order: int, images: int, frequencies: tuple[Ints, Ints]) -> Floats:
    """Mean similarity of one order to an image's references, clipped and unclipped, [2, I]."""
    keys, hypotheses, references = count_ngrams(part, order)
    image = part.image_of_reference()
    at, there = find(frequencies[0], keys)
    seen = np.where(there, frequencies[1][at] if len(frequencies[1]) else 1, 1)
    rarity = np.log(float(images)) - np.log(np.maximum(1.0, seen))  # of each n-gram, [D]
    mine = hypotheses.counts * rarity[hypotheses.ngram]
    theirs = references.counts * rarity[references.ngram]

    def sums(sentence: Ints, weights: Floats, sentences: int) -> Floats:
        return np.asarray(np.bincount(sentence, weights, sentences), np.float64)

    norms = np.sqrt(sums(hypotheses.sentence, mine**2, len(part)))[image]
    norms = norms * np.sqrt(sums(references.sentence, theirs**2, len(image)))
    norms = np.where(norms > 0, norms, 1.0)
    at, there = find(hypotheses.in_image, references.in_image)
    shared = np.where(there, mine[at] if len(mine) else 0.0, 0.0)
    # Lengths are in pairs of words, as in coco-caption: 0 for a sentence of one word.
    lengths = [np.maximum(0, one.lengths - 1) for one in (part.hypotheses, part.references)]
    penalty = np.exp(-((lengths[0][image] - lengths[1]) ** 2) / (2 * SIGMA**2))
    clipped, plain = (
        sums(references.sentence, product, len(image)) / norms
        for product in (np.minimum(shared, theirs) * theirs, shared * theirs)
    )
    by_image = [sums(image, one, len(part)) for one in (clipped * penalty, plain)]
    return np.asarray(np.stack(by_image) / part.counts)
