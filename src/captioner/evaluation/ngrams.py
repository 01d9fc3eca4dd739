"""References and hypotheses as arrays of word numbers, and their n-grams counted.

Legend: I images, S sentences (one hypothesis an image, or all its references), N words,
G n-grams (with repetition), D different n-grams, all of the images at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ORDERS = (1, 2, 3, 4)
CHUNK = 1000  # images whose n-grams are in memory at a time
_HALF = 32  # bits
_NONE = np.zeros(0, np.int64)


def starts(lengths: Ints) -> Ints:
    """Where parts of these lengths begin, one after another, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


@dataclass(frozen=True)
class Sentences:
    """Sentences one after another: word numbers [N], and each sentence's length [S]."""

    words: NDArray[np.int32]
    lengths: Ints

    def starts(self) -> Ints:
        """Where each sentence begins in `words`, and where the last ends, [S + 1]."""
        return starts(self.lengths)

    def cut(self, first: int, last: int, begins: Ints) -> Sentences:
        """The sentences from `first` up to `last`; `begins` are `starts()`."""
        return Sentences(self.words[begins[first] : begins[last]], self.lengths[first:last])


@dataclass(frozen=True)
class Corpus:
    """One hypothesis and one or more references an image, and the words behind the numbers.

    `counts` [I] says how many references each image has; `pairs` are all pairs of neighbouring
    words, packed and sorted, so that an n-gram of up to four words has an exact 64-bit key.
    """

    hypotheses: Sentences
    references: Sentences
    counts: Ints
    vocabulary: dict[str, int]
    pairs: Ints

    def __len__(self) -> int:
        return len(self.counts)

    def chunks(self, images: int = CHUNK) -> Iterator[Corpus]:
        """The corpus in parts of at most `images` images, in order."""
        of_hypothesis, of_reference = self.hypotheses.starts(), self.references.starts()
        first_reference = starts(self.counts)
        for first in range(0, len(self), images):
            last = min(first + images, len(self))
            low, high = int(first_reference[first]), int(first_reference[last])
            yield replace(
                self,
                hypotheses=self.hypotheses.cut(first, last, of_hypothesis),
                references=self.references.cut(low, high, of_reference),
                counts=self.counts[first:last],
            )

    def image_of_reference(self) -> Ints:
        """The image each reference belongs to, [S]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def keys(self, sentences: Sentences, order: int) -> tuple[Ints, Ints]:
        """The sentence of each n-gram [G] and its key [G], the same for the same words."""
        words = sentences.words.astype(np.int64)
        sentence = np.repeat(np.arange(len(sentences.lengths)), sentences.lengths)
        ends = np.repeat(sentences.starts()[1:], sentences.lengths)
        (at,) = np.nonzero(np.arange(len(words)) + order <= ends)
        if order == 2:  # also while `pairs` is not known yet
            return sentence[at], (words[at] << _HALF) | words[at + 1]
        return sentence[at], self.keys_of(words[at[:, None] + np.arange(order)])[0]

    def keys_of(self, words: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """The key of each n-gram, a row of word numbers [G, order], and whether the corpus can have
        it at all."""
        order, possible = words.shape[1], np.ones(len(words), bool)
        if order == 1:
            return words[:, 0], possible
        key = (words[:, 0] << _HALF) | words[:, 1]
        if order > 2:
            key, possible = find(self.pairs, key)
            last = words[:, 2]
            if order == 4:
                last, there = find(self.pairs, (last << _HALF) | words[:, 3])
                possible = possible & there
            key = (key << _HALF) | last
        return key, possible


def encode(
    references: Iterable[Sequence[str]],
    hypotheses: Iterable[str],
    tokens_of: Callable[[str], Sequence[str]],
) -> Corpus:
    """The corpus of raw captions, tokenised by `tokens_of` one at a time; errors as
    `with_hypotheses`."""
    return with_hypotheses(encode_references(references, tokens_of), hypotheses, tokens_of)


def encode_references(
    references: Iterable[Sequence[str]], tokens_of: Callable[[str], Sequence[str]]
) -> Corpus:
    """The corpus of raw references whose hypotheses, one an image, have no words yet."""
    vocabulary: dict[str, int] = {}
    counts: list[int] = []

    def all_references() -> Iterator[str]:
        for of_image in references:
            counts.append(len(of_image))
            yield from of_image

    encoded = _encode(all_references(), vocabulary, tokens_of)
    nothing, none = Sentences(np.zeros(0, np.int32), np.zeros(len(counts), np.int64)), _NONE
    corpus = Corpus(nothing, encoded, np.array(counts, np.int64), vocabulary, none)
    pairs = [np.unique(part.keys(part.references, 2)[1]) for part in corpus.chunks()]
    return replace(corpus, pairs=np.unique(np.concatenate([none, *pairs])))


def with_hypotheses(
    corpus: Corpus, hypotheses: Iterable[str], tokens_of: Callable[[str], Sequence[str]]
) -> Corpus:
    """The corpus with these raw hypotheses in place of its own; `corpus` stays as it is.

    Raises DataError when there is no image, when their number is another, or when an image has no
    reference.
    """
    vocabulary = dict(corpus.vocabulary)
    encoded = _encode(hypotheses, vocabulary, tokens_of)
    _check(corpus.counts.tolist(), len(encoded.lengths))
    corpus = replace(corpus, hypotheses=encoded, vocabulary=vocabulary)
    pairs = [np.unique(part.keys(part.hypotheses, 2)[1]) for part in corpus.chunks()]
    return replace(corpus, pairs=np.unique(np.concatenate([corpus.pairs, *pairs])))


def _encode(
    captions: Iterable[str], vocabulary: dict[str, int], tokens_of: Callable[[str], Sequence[str]]
) -> Sentences:
    lengths: list[int] = []

    def numbers() -> Iterator[int]:
        for caption in captions:
            tokens = tokens_of(caption)
            lengths.append(len(tokens))
            for token in tokens:
                yield vocabulary.setdefault(token, len(vocabulary))

    words = np.fromiter(numbers(), dtype=np.int32)
    return Sentences(words, np.array(lengths, np.int64))


def _check(counts: Sequence[int], hypotheses: int) -> None:
    if len(counts) != hypotheses or not counts:
        raise DataError(
            "scores need one hypothesis for each image, at least one: got "
            f"{hypotheses} hypotheses for {len(counts)} images"
        )
    without = [row for row, count in enumerate(counts) if not count]
    if without:
        raise DataError(
            f"scores need a reference for each image: {len(without)} of {len(counts)} have "
            f"none, the first at position {without[0]}"
        )


class Entries(NamedTuple):
    """The different n-grams of each sentence, each once: its sentence, its number (below D), its
    count, and image and number as one number. Sorted by sentence and n-gram."""

    sentence: Ints
    ngram: Ints
    counts: Ints
    in_image: Ints


class Counted(NamedTuple):
    """How often each n-gram, of the keys [D], occurs in each hypothesis and each reference."""

    keys: Ints
    hypotheses: Entries
    references: Entries


def count_ngrams(part: Corpus, order: int) -> Counted:
    """The n-grams of a part of a corpus, counted by sentence."""
    mine, my_keys = part.keys(part.hypotheses, order)
    theirs, their_keys = part.keys(part.references, order)
    keys, numbers = np.unique(np.concatenate([my_keys, their_keys]), return_inverse=True)
    size = max(1, len(keys))

    def entries(sentence: Ints, ngram: Ints, image: Ints) -> Entries:
        both, count = np.unique(sentence * size + ngram, return_counts=True)
        sentence, ngram = both // size, both % size
        return Entries(sentence, ngram, count.astype(np.int64), image[sentence] * size + ngram)

    return Counted(
        keys,
        entries(mine, numbers[: len(mine)], np.arange(len(part))),
        entries(theirs, numbers[len(mine) :], part.image_of_reference()),
    )


def find(sorted_values: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each of `wanted` is in `sorted_values` (0 where it does not), and whether."""
    if not len(sorted_values):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return at, sorted_values[at] == wanted
