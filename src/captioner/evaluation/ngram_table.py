"""N-grams of up to four words, numbered exactly: the same words have the same number.

Legend: S sentences, N words, G n-grams of a table, E different n-grams of each sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from captioner.evaluation.ngrams import ORDERS, Ints, Sentences, find, starts

_HALF = 32  # bits


class Counted(NamedTuple):
    """The different n-grams of each sentence, each once, sorted by sentence and number: [E] all.

    Numbers below the table's size are its own; `size` is above every number.
    """

    sentence: Ints
    ngram: Ints
    order: Ints
    counts: Ints
    size: int


class NgramTable:
    """All n-grams of `sentences`, numbered from 0 to `size` - 1.

    An n-gram is a number and a word: that of its first n - 1 words, and its last. So a key has 64
    bits whatever the order, and no two n-grams share one.
    """

    def __init__(self, sentences: Sentences) -> None:
        self._keys = [np.zeros(0, np.int64)] * len(ORDERS)
        self._first = [0] * len(ORDERS)  # the number of each order's first key
        self.size = 0
        keys = [new for _, _, new in self._walk(sentences)]
        self._keys, self._first = keys, starts(np.array([*map(len, keys)])).tolist()[:-1]
        self.size = sum(map(len, keys))

    def count(self, sentences: Sentences) -> Counted:
        """The n-grams of other sentences; those that are not in the table get numbers above it,
        which hold for this call."""
        sentence, ngram, new = (list(part) for part in zip(*self._walk(sentences), strict=True))
        size = self.size + sum(map(len, new))
        order = np.repeat(ORDERS, [*map(len, ngram)])
        key = np.concatenate(sentence) * max(size, 1) + np.concatenate(ngram)
        key, first, count = np.unique(key, return_index=True, return_counts=True)
        return Counted(key // max(size, 1), key % max(size, 1), order[first], count, size)

    def _walk(self, sentences: Sentences) -> Iterator[tuple[Ints, Ints, Ints]]:
        """For each order the sentence and the number of every n-gram, and the sorted keys of those
        that are new, which are numbered in this order after everything before."""
        words = sentences.words.astype(np.int64)
        sentence = np.repeat(np.arange(len(sentences.lengths)), sentences.lengths)
        ends = np.repeat(sentences.starts()[1:], sentences.lengths)
        at, number, numbered = np.arange(len(words)), np.zeros(len(words), np.int64), self.size
        for order, keys, first in zip(ORDERS, self._keys, self._first, strict=True):
            fits = at + order <= ends[at]
            at = at[fits]
            key = (number[fits] << _HALF) | words[at + order - 1]
            place, known = find(keys, key)
            new, rank = np.unique(key[~known], return_inverse=True)
            number = first + place
            number[~known] = numbered + rank
            numbered += len(new)
            yield sentence[at], number, new
