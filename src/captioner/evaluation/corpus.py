"""Raw captions as word numbers: one hypothesis and one or more references an image.

Legend: I images, S sentences (one hypothesis an image, or all its references), N words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice

import numpy as np
from numpy.typing import NDArray

from captioner.errors import DataError
from captioner.evaluation import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BATCH = 1000  # captions whose word numbers are in memory as Python's at a time
LARGE_BATCH = 100_000  # captions that the library splits at a time


def starts(lengths: Ints) -> Ints:
    """Where parts of these lengths begin, one after another, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def ranges(first: Ints, lengths: Ints) -> Ints:
    """first[k], first[k] + 1, ... of each length, one range after another."""
    begins = starts(lengths)
    return np.repeat(first - begins[:-1], lengths) + np.arange(begins[-1])


@dataclass(frozen=True)
class Sentences:
    """Sentences one after another: word numbers [N], and each sentence's length [S]."""

    words: NDArray[np.int32]
    lengths: Ints

    def starts(self) -> Ints:
        """Where each sentence begins in `words`, and where the last ends, [S + 1]."""
        return starts(self.lengths)

    def take(self, rows: Ints) -> Sentences:
        """The sentences of these rows."""
        lengths = self.lengths[rows]
        return Sentences(self.words[ranges(self.starts()[rows], lengths)], lengths)


def sentences_of(words: Sequence[Sequence[int]]) -> Sentences:
    """Sentences one after another, from a list of word numbers each."""
    flat = np.fromiter((word for one in words for word in one), np.int32)
    return Sentences(flat, np.array([*map(len, words)], np.int64))


@dataclass(frozen=True)
class Corpus:
    """One hypothesis and one or more references an image, and the words behind the numbers.

    `counts` [I] says how many references each image has; the vocabulary is in the order of its
    numbers.
    """

    hypotheses: Sentences
    references: Sentences
    counts: Ints
    vocabulary: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.counts)

    def image_of_reference(self) -> Ints:
        """The image each reference belongs to, [S]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def rows(self) -> compiled.Rows:
        """All sentences, image by image, the hypothesis first."""
        image = np.concatenate([np.arange(len(self)), self.image_of_reference()])
        both = Sentences(
            np.concatenate([self.hypotheses.words, self.references.words]),
            np.concatenate([self.hypotheses.lengths, self.references.lengths]),
        ).take(np.argsort(image, kind="stable"))
        return compiled.Rows(both.words, both.starts(), starts(self.counts + 1))

    def one_against_others(self, place: int) -> Corpus:
        """The reference at `place` of each image as its hypothesis, the others as its references.

        It is what `encode` makes of them. Every image needs two references and one at `place`.
        """
        ones = starts(self.counts)[:-1] + place
        others = self.references.take(np.delete(np.arange(self.counts.sum()), ones))
        people = self.references.take(ones)
        words = np.concatenate([others.words, people.words])
        first = np.full(len(self.vocabulary), len(words))  # where each word occurs first
        first[words[::-1]] = np.arange(len(words))[::-1]
        old = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(words))]
        new = np.zeros(len(first), np.int32)
        new[old] = np.arange(len(old))
        names = list(self.vocabulary)
        return Corpus(
            Sentences(new[people.words], people.lengths),
            Sentences(new[others.words], others.lengths),
            self.counts - 1,
            {names[word]: number for number, word in enumerate(old)},
        )


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
    listed = [*references]
    counts = np.array([*map(len, listed)], np.int64)
    encoded, vocabulary = encode_captions(chain.from_iterable(listed), {}, tokens_of)
    return Corpus(sentences_of([()] * len(counts)), encoded, counts, vocabulary)


def with_hypotheses(
    corpus: Corpus, hypotheses: Iterable[str], tokens_of: Callable[[str], Sequence[str]]
) -> Corpus:
    """The corpus with these raw hypotheses in place of its own; `corpus` stays as it is.

    Raises DataError when there is no image, when their number is another, or when an image has no
    reference.
    """
    encoded, vocabulary = encode_captions(hypotheses, corpus.vocabulary, tokens_of)
    _check(corpus.counts.tolist(), len(encoded.lengths))
    return replace(corpus, hypotheses=encoded, vocabulary=vocabulary)


def encode_captions(
    captions: Iterable[str],
    vocabulary: Mapping[str, int],
    tokens_of: Callable[[str], Sequence[str]],
) -> tuple[Sentences, dict[str, int]]:
    """The captions, whose new words are numbered after those of the vocabulary, and all words."""
    known = defaultdict(count(len(vocabulary)).__next__, vocabulary)
    pieces = _Pieces(tokens_of, known.__getitem__)
    by_library = compiled.available() and hasattr(tokens_of, "piece")
    read = _read_by_library if by_library else _read
    parts, captions = [(np.zeros(0, np.int32), np.zeros(0, np.int64))], iter(captions)
    while batch := [*islice(captions, LARGE_BATCH if by_library else BATCH)]:
        parts.append(read(batch, pieces))
    words, lengths = map(np.concatenate, zip(*parts, strict=True))
    return Sentences(words, lengths), dict(known)


class _Pieces(dict[str, "list[int] | None"]):
    """The word numbers of what stands between spaces; None where the caption has to be read whole,
    as by a tokeniser without a method for pieces."""

    def __init__(
        self, tokens_of: Callable[[str], Sequence[str]], number: Callable[[str], int]
    ) -> None:
        super().__init__()
        self._tokens_of, self._number = tokens_of, number
        self._piece = getattr(tokens_of, "piece", lambda piece: None)

    def __missing__(self, piece: str) -> list[int] | None:
        tokens = self._piece(piece)
        self[piece] = numbers = None if tokens is None else [*map(self._number, tokens)]
        return numbers

    def in_context(self, piece: str) -> bool:
        """Whether the caption has to be read whole."""
        return (self[piece] if piece in self else self._piece(piece)) is None

    def whole(self, caption: str) -> list[int]:
        """The word numbers of a caption that is read whole."""
        return [*map(self._number, self._tokens_of(caption))]


def _read(captions: Sequence[str], pieces: _Pieces) -> tuple[NDArray[np.int32], Ints]:
    """The word numbers of captions, and how many each has."""
    flat: list[int] = []
    lengths = []
    for caption in captions:
        begin = len(flat)
        for numbers in map(pieces.__getitem__, caption.split()):
            if numbers is None:
                flat[begin:] = pieces.whole(caption)
                break
            flat += numbers
        lengths.append(len(flat) - begin)
    return np.array(flat, np.int32), np.array(lengths, np.int64)


def _read_by_library(captions: Sequence[str], pieces: _Pieces) -> tuple[NDArray[np.int32], Ints]:
    """What `_read` gives, which here only reads the captions that are read whole."""
    piece, counts, names = compiled.pieces(captions)
    caption, begins = np.repeat(np.arange(len(captions)), counts), starts(counts)
    in_context = np.array([pieces.in_context(name) for name in names], bool)
    is_whole = np.zeros(len(captions), bool)
    is_whole[caption[in_context[piece]]] = True
    (whole,), (others,) = np.nonzero(is_whole), np.nonzero(~is_whole)
    (used,) = np.nonzero(~is_whole[caption])
    first = np.full(len(names), -1)  # where each piece is used first
    first[piece[used[::-1]]] = used[::-1]
    # Words are numbered in the order in which they occur: of pieces, and of captions read whole.
    places = [*zip(first.tolist(), names, strict=True)]
    events = [(at, name, "") for at, name in places if at >= 0 and name not in pieces]
    events += [(begins[row], "", captions[row]) for row in whole.tolist()]
    read = [_read([], pieces)]
    for _, name, caption_read_whole in sorted(events):
        if name:
            pieces[name]
        else:
            read.append(_read([caption_read_whole], pieces))
    numbers = [pieces.get(name) or () for name in names]
    sizes = np.array([*map(len, numbers)], np.int64)
    flat = np.array([*chain(*numbers)], np.int32)
    words = flat[ranges(starts(sizes)[piece[used]], sizes[piece[used]])]
    lengths = np.bincount(caption, sizes[piece], len(captions)).astype(np.int64)[others]
    words, lengths = map(np.concatenate, zip((words, lengths), *read, strict=True))
    both = Sentences(words, lengths).take(np.argsort(np.concatenate([others, whole])))
    return both.words, both.lengths


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
