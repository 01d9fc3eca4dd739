"""CIDEr-D, which coco-caption prints as CIDEr, and the unclipped CIDEr (Vedantam et al. 2015).

Legend: I images, D different n-grams. A weight is count x (log I - log document frequency); the
document frequency of an n-gram is the number of images one of whose references has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captioner.errors import DataError
from captioner.evaluation.metric import Metric, mean_metric
from captioner.evaluation.ngrams import (
    ORDERS,
    Corpus,
    Counted,
    Entries,
    Floats,
    Ints,
    count_ngrams,
    find,
)
from captioner.files import read_json, write_json

SIGMA = 6.0  # words: the width of CIDEr-D's length penalty
_HALF = 32


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
            counts.update(
                {
                    " ".join(tokens[at : at + order])
                    for tokens in of_image
                    for order in ORDERS
                    for at in range(len(tokens) - order + 1)
                }
            )
        return cls(images, {ngram: count for ngram, count in counts.items() if count > 1})

    def save(self, path: Path | str) -> None:
        """Write the table as JSON, atomically."""
        write_json(path, {"images": self.images, "ngrams": dict(self.counts)})

    @classmethod
    def load(cls, path: Path | str) -> DocumentFrequencies:
        """Read a saved table; DataError naming the file when it is none."""
        content = read_json(path)
        if not isinstance(content, dict) or not {"images", "ngrams"} <= content.keys():
            raise DataError(f'{path}: expected a table {{"images": number, "ngrams": {{...}}}}')
        images, counts = content["images"], content["ngrams"]
        wrong = [k for k, v in counts.items() if not isinstance(v, int) or not 0 < v <= images]
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
        done = 0
        for part in corpus.chunks():
            totals[:, done : done + len(part)] += _similarity(part, order, images, frequencies)
            done += len(part)
    clipped, plain = 1000.0 * totals / len(ORDERS)
    return [mean_metric("CIDEr-D", clipped), mean_metric("CIDEr-unclipped", plain)]


# -- document frequencies: sorted keys, and how many images each is in --------------------------


def _count(corpus: Corpus, order: int) -> tuple[Ints, Ints]:
    """Keys in two or more images' references; merged now and then so that memory stays small."""
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    waiting: list[tuple[Ints, Ints]] = []
    for part in corpus.chunks():
        image, key = part.image_of_reference(), part.keys(part.references, order)
        different, number = np.unique(key[1], return_inverse=True)
        both = np.unique(number * len(part) + image[key[0]])
        waiting.append((different, np.bincount(both // len(part), minlength=len(different))))
        if sum(len(one) for one, _ in waiting) > len(keys):
            keys, counts = _merge([(keys, counts), *waiting])
            waiting = []
    keys, counts = _merge([(keys, counts), *waiting])
    return keys[counts > 1], counts[counts > 1]


def _merge(tables: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    keys, number = np.unique(np.concatenate([k for k, _ in tables]), return_inverse=True)
    counts = np.bincount(number, weights=np.concatenate([c for _, c in tables]))
    return keys, counts.astype(np.int64)


def _from_table(corpus: Corpus, table: DocumentFrequencies, order: int) -> tuple[Ints, Ints]:
    """The entries of a saved table whose words all occur in the corpus, by the corpus's keys."""
    rows, counts = [], []
    for ngram, count in table.counts.items():
        words = ngram.split(" ")
        if len(words) == order and all(word in corpus.vocabulary for word in words):
            rows.append([corpus.vocabulary[word] for word in words])
            counts.append(count)
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    words_of = np.array(rows, np.int64)
    keys, possible = _keys_of(corpus, words_of)
    by_key = np.argsort(keys[possible])
    return keys[possible][by_key], np.array(counts, np.int64)[possible][by_key]


def _keys_of(corpus: Corpus, words: Ints) -> tuple[Ints, np.ndarray]:
    """The key of each row of words, and whether the corpus can hold it at all."""
    order = words.shape[1]
    possible = np.ones(len(words), bool)
    if order == 1:
        return words[:, 0], possible
    keys = (words[:, 0] << _HALF) | words[:, 1]
    if order > 2:
        keys, possible = find(corpus.pairs, keys)
        last = words[:, 2]
        if order == 4:
            last, there = find(corpus.pairs, (last << _HALF) | words[:, 3])
            possible = possible & there
        keys = (keys << _HALF) | last
    return keys, possible


# -- similarity ---------------------------------------------------------------------------------


def _similarity(part: Corpus, order: int, images: int, frequencies: tuple[Ints, Ints]) -> Floats:
    """Mean similarity of one order to an image's references, clipped and unclipped, [2, I]."""
    counted = count_ngrams(part, order)
    image = part.image_of_reference()
    rarity = _rarity(counted, images, frequencies)
    mine = _weights(counted.hypotheses, rarity)
    theirs = _weights(counted.references, rarity)
    my_norm = _norms(counted.hypotheses.sentence, mine, len(part))
    their_norm = _norms(counted.references.sentence, theirs, len(image))
    my_entry, their_entry = counted.image_entries(image)
    at, there = find(my_entry, their_entry)
    shared = np.where(there, mine[at] if len(mine) else 0.0, 0.0)
    norms = my_norm[image] * their_norm
    norms = np.where(norms > 0, norms, 1.0)
    # Lengths are in pairs of words, as in coco-caption: 0 for a sentence of one word.
    lengths = [np.maximum(0, side.lengths - 1) for side in (part.hypotheses, part.references)]
    penalty = np.exp(-((lengths[0][image] - lengths[1]) ** 2) / (2 * SIGMA**2))
    products = (np.minimum(shared, theirs) * theirs, shared * theirs)
    by_reference = [
        np.bincount(counted.references.sentence, weights=product, minlength=len(image)) / norms
        for product in products
    ]
    sums = [
        np.bincount(image, weights=one, minlength=len(part))
        for one in (by_reference[0] * penalty, by_reference[1])
    ]
    return np.asarray(np.stack(sums) / part.counts)


def _rarity(counted: Counted, images: int, frequencies: tuple[Ints, Ints]) -> Floats:
    """log(images / document frequency) of each different n-gram, [D]."""
    at, there = find(frequencies[0], counted.keys)
    seen = np.where(there, frequencies[1][at] if len(frequencies[1]) else 1, 1)
    return np.asarray(np.log(float(images)) - np.log(np.maximum(1.0, seen)))


def _weights(entries: Entries, rarity: Floats) -> Floats:
    return np.asarray(entries.count * rarity[entries.ngram])


def _norms(sentence: Ints, weights: Floats, sentences: int) -> Floats:
    return np.sqrt(np.bincount(sentence, weights=weights**2, minlength=sentences))
