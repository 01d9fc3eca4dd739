"""N-grams of up to four words: numbered exactly (the same words have the same number), and counted.

Legend: S sentences, I images, N words, E different n-grams of each sentence, P pairs of an n-gram
of a hypothesis and the same one of a reference of its image.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from captioner.evaluation.corpus import Corpus, Ints, Sentences, starts

Rows = NDArray[np.int32]
ORDERS = (1, 2, 3, 4)
PART = 1 << 17  # words whose n-grams are in memory at a time, of a corpus
_HALF = 32  # bits


class Counted(NamedTuple):
    """The different n-grams of each sentence, each once, sorted by number and sentence: [E] all."""

    sentence: Ints
    ngram: Ints
    counts: Ints
    order: Ints


class NgramTable:
    """All n-grams of `sentences`, numbered from 0 to `size` - 1, order after order."""

    def __init__(self, sentences: Sentences) -> None:
        self._keys = [np.zeros(0, np.int64)] * len(ORDERS)
        self.size = 0
        self._keys = [new for *_, new in self._walk(sentences)]
        self.size = sum(map(len, self._keys))

    def count(self, sentences: Sentences) -> Counted:
        """The n-grams of other sentences; those that are not in the table get numbers above it,
        which hold for this call."""
        sentence, ngram, new = zip(*self._walk(sentences), strict=True)
        entries = _distinct(np.concatenate(sentence), np.concatenate(ngram))
        first = starts(np.array([*map(len, self._keys), *map(len, new)]))
        order = (np.searchsorted(first, entries[1], side="right") - 1) % len(ORDERS) + 1
        return Counted(*entries, order)

    def _walk(self, sentences: Sentences) -> Iterator[tuple[Rows, Ints, Ints]]:
        """For each order the sentence and the number of every n-gram, and the sorted keys of those
        that are new, which are numbered in this order after everything before."""
        text = _Text.of(sentences, np.arange(len(sentences.lengths)))
        at, number = np.arange(len(text.words)), np.zeros(len(text.words), np.int64)
        first, numbered = 0, self.size
        for order, keys in zip(ORDERS, self._keys, strict=True):
            at, key = text.longer(at, number, order)
            place, known = _find(keys, key)
            new, rank = np.unique(key[~known], return_inverse=True)
            number = first + place
            number[~known] = numbered + rank
            first, numbered = first + len(keys), numbered + len(new)
            yield text.row[at], number, new


class Part(NamedTuple):
    """N-grams of one order, each once in each row that has it, sorted by n-gram and row: its row,
    its count there, and the number of documents that have it, [E]; the pairs of entries that a
    hypothesis and a reference share, [P], in which a hypothesis's follow each other.
    """

    order: int
    row: Ints
    counts: Ints
    documents: Ints
    hypothesis: Ints
    reference: Ints


class Sum(Protocol):
    """What is made of the n-grams of a corpus, part after part."""

    def add(self, part: Part) -> None:
        """Add a part."""


class CorpusNgrams:
    """The n-grams of a corpus in parts: those of each order that begin with some of the words.

    So an n-gram is in one part with all sentences that have it, and what is summed up part after
    part is summed in the order of the words' numbers. Sentences are rows, image by image, the
    hypothesis first: `hypothesis` [I] and `reference` [S] are the rows of these, `image` [I + S]
    the image of each row. Of `documents`, the images unless given, those have an n-gram that have
    it in a reference, or as many as `table` says: n-grams, and a number for each.
    """

    def __init__(
        self,
        corpus: Corpus,
        documents: int | None = None,
        table: tuple[Sentences, Ints] | None = None,
    ) -> None:
        self.documents = len(corpus) if documents is None else documents
        self.hypothesis = starts(corpus.counts)[:-1] + np.arange(len(corpus))
        self.reference = np.arange(corpus.counts.sum()) + corpus.image_of_reference() + 1
        self.image = np.repeat(np.arange(len(corpus)), corpus.counts + 1)
        texts = [
            _Text.of(corpus.hypotheses, self.hypothesis),
            _Text.of(corpus.references, self.reference),
        ]
        self._table = table
        if table is not None:  # its n-grams are counted as if they were sentences
            texts.append(_Text.of(table[0], len(self.image) + np.arange(len(table[1]))))
        self._text = _Text(*map(np.concatenate, zip(*texts, strict=True)))

    def add_up(self, *sums: Sum) -> None:
        """Give every part to all of `sums`."""
        for part in self:
            for each in sums:
                each.add(part)

    def __iter__(self) -> Iterator[Part]:
        words = self._text.words
        before = np.cumsum(np.bincount(words))  # words up to each number
        cuts = np.searchsorted(before, np.arange(PART, len(words), PART), side="right")
        bounds = np.unique([0, *cuts, len(before)])
        for low, high in pairwise(bounds):
            (at,) = np.nonzero((words >= low) & (words < high))
            number = words[at].astype(np.int64) - low
            for order in ORDERS:
                if order > 1:
                    at, key = self._text.longer(at, number, order)
                    number = np.unique(key, return_inverse=True)[1]
                yield self._part(order, *_distinct(self._text.row[at], number))

    def _part(self, order: int, row: Ints, ngram: Ints, counts: Ints) -> Part:
        size = int(ngram[-1]) + 1 if len(ngram) else 0
        if self._table is not None:
            documents = np.zeros(size, np.int64)
            sentences, numbers = self._table
            (theirs,) = np.nonzero(row >= len(self.image))
            sentence = row[theirs] - len(self.image)
            whole = sentences.lengths[sentence] == order  # not the parts of an n-gram
            documents[ngram[theirs[whole]]] = numbers[sentence[whole]]
            own = row < len(self.image)
            row, ngram, counts = row[own], ngram[own], counts[own]
        image = self.image[row]
        of_reference = self.hypothesis[image] != row
        if self._table is None:
            documents = images_with(ngram[of_reference], image[of_reference], size)
        # The first entry of an n-gram and an image is the hypothesis's, if that has it.
        begins = np.diff(pack(ngram, image), prepend=-1) != 0
        first = np.maximum.accumulate(np.where(begins, np.arange(len(row)), 0))
        (reference,) = np.nonzero(of_reference & ~of_reference[first])
        return Part(order, row, counts, documents[ngram], first[reference], reference)


class _Text(NamedTuple):
    """Words, and the row of the sentence of each: [N] both."""

    words: NDArray[np.int32]
    row: Rows

    @classmethod
    def of(cls, sentences: Sentences, rows: Ints) -> _Text:
        return cls(sentences.words, np.repeat(rows.astype(np.int32), sentences.lengths))

    def longer(self, at: Ints, number: Ints, order: int) -> tuple[Ints, Ints]:
        """Of n-grams that begin `at` those that a word more is in the sentence of, and their keys.

        A key is the number of the n-gram without its last of `order` words, and that word: so it
        has 64 bits whatever the order, and no two n-grams share one.
        """
        fits = at + order <= len(self.words)
        fits[fits] = self.row[at[fits]] == self.row[at[fits] + order - 1]
        at = at[fits]
        return at, pack(number[fits], self.words[at + order - 1])


def _distinct(sentence: Rows, ngram: Ints) -> tuple[Ints, Ints, Ints]:
    """Each pair of a sentence and an n-gram once, sorted by n-gram and sentence, and how often."""
    both, counts = np.unique(pack(ngram, sentence), return_counts=True)
    return both & ((1 << _HALF) - 1), both >> _HALF, counts


def pack(high: Ints, low: Ints | Rows) -> Ints:
    """Two numbers of at most 32 bits as one, which sorts by the first and then by the second."""
    return (high << _HALF) | low


def images_with(ngram: Ints, image: Ints, size: int) -> Ints:
    """Of each n-gram below `size` the number of images that have it; entries sorted by n-gram and
    image."""
    new = np.diff(pack(ngram, image), prepend=-1) != 0
    return np.bincount(ngram[new], minlength=size)


def _find(sorted_values: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each of `wanted` is in `sorted_values` (0 where it does not), and whether."""
    if not len(sorted_values):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return at, sorted_values[at] == wanted
