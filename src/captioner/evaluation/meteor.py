"""METEOR 1.5 without Java, called METEOR-py: `METEOR` is the Java jar's (java_metrics.py).

Denkowski and Lavie 2014, "Meteor Universal", with the English parameters of its ranking task. To
align a caption with a reference, matches of all modules are found first; a beam search over the
reference then prefers more matched words, then fewer chunks, then matches at closer positions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count, islice, pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.evaluation.compiled import Words
from captioner.evaluation.corpus import Corpus, Floats, Sentences, ranges, sentences_of, starts
from captioner.evaluation.meteor_words import WordMatches, load_knowledge, stem
from captioner.evaluation.metric import Metric
from captioner.progress import track

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = {"exact": 1.0, "stem": 0.6, "synonym": 0.8, "paraphrase": 0.6}
BEAM = 40


def meteor(corpus: Corpus, knowledge: WordMatches | Words) -> Metric:
    """METEOR-py, 0 to 100, of a corpus as `normalised` makes it; of each image the reference that
    scores highest counts.

    The corpus score is that of the summed statistics, as the jar's. An image without a match, an
    empty hypothesis and an empty reference score 0.
    """
    if isinstance(knowledge, Words):
        table = knowledge.statistics(_numbered(corpus, knowledge).rows())
    else:
        table = np.array([*_all_statistics(corpus, knowledge)])
    values, first = score(table), starts(corpus.counts)[:-1]
    best = np.repeat(np.maximum.reduceat(values, first), corpus.counts)
    (rows,) = np.nonzero(values == best)
    return meteor_metric(table[rows[np.searchsorted(rows, first)]])


def _all_statistics(corpus: Corpus, knowledge: WordMatches) -> Iterator[list[float]]:
    """Those of each reference."""
    names = np.array([*corpus.vocabulary], object)
    hypotheses, references = map(partial(_texts, names), (corpus.hypotheses, corpus.references))
    counts = corpus.counts.tolist()
    pairs = zip(hypotheses, counts, strict=True)
    for hypothesis, several in track(pairs, len(counts), "METEOR-py", units="images"):
        for reference in islice(references, several):
            yield statistics(hypothesis, reference, knowledge)


def _texts(names: NDArray[Any], sentences: Sentences) -> Iterator[tuple[str, ...]]:
    words = names[sentences.words].tolist()
    for first, last in pairwise(sentences.starts().tolist()):
        yield tuple(words[first:last])


def _numbered(corpus: Corpus, knowledge: Words) -> Corpus:
    """The corpus with the words' numbers in what is known of them."""
    numbers = np.array([*map(knowledge.numbers.__getitem__, corpus.vocabulary)], np.int32)
    sentences = corpus.hypotheses, corpus.references
    hypotheses, references = (Sentences(numbers[x.words], x.lengths) for x in sentences)
    return replace(corpus, hypotheses=hypotheses, references=references)


def meteor_metric(table: Floats) -> Metric:
    """The metric of statistics [I, 6]."""
    return Metric("METEOR-py", 100 * score(table), table, lambda sums: 100 * score(sums))


def normalised(corpus: Corpus) -> Corpus:
    """The corpus in words as the jar's own normaliser leaves them."""
    normal = Normaliser(corpus.vocabulary)
    hypotheses, references = normal(corpus.hypotheses), normal(corpus.references)
    return Corpus(hypotheses, references, corpus.counts, normal.vocabulary)


class Normaliser:
    """Words as the jar's own normaliser leaves them: "t-shirt" is t and shirt, and "'s" is ' and s.

    Sentences have the numbers of `words`, and then those of `vocabulary`.
    """

    def __init__(self, words: Iterable[str]) -> None:
        known = defaultdict[str, int](count().__next__)
        parts = [
            [known[part] for part in word.replace("-", " ").replace("'", " ' ").split()]
            for word in words
        ]
        self.vocabulary = dict(known)
        self._sizes = np.array([*map(len, parts)], np.int64)
        self._flat = np.array([*chain(*parts)], np.int32)
        self._begins = starts(self._sizes)

    def __call__(self, sentences: Sentences) -> Sentences:
        """The sentences in its words."""
        parts = self._sizes[sentences.words]
        lengths = np.diff(starts(parts)[sentences.starts()])
        return Sentences(self._flat[ranges(self._begins[sentences.words], parts)], lengths)


class MeteorReferences:
    """METEOR-py of single sentences, against references of images that are normalised once.

    `references`: of each image its sentences, as numbers of `words`.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]], words: Sequence[str]) -> None:
        self._normal = Normaliser(words)
        self._counts = np.array([*map(len, references)], np.int64)
        self._first = starts(self._counts)
        self._references = self._normal(sentences_of([*chain(*references)]))
        self._knowledge = load_knowledge(frozenset(self._normal.vocabulary))[1]

    def scores(self, words: Sequence[Sequence[int]], images: Sequence[int]) -> Floats:
        """Of each sentence against the references of its image, whose number is given, in percent,
        [S]."""
        image = np.asarray(images, np.int64)
        counts = self._counts[image]
        references = self._references.take(ranges(self._first[image], counts))
        hypotheses, vocabulary = self._normal(sentences_of(words)), self._normal.vocabulary
        corpus = Corpus(hypotheses, references, counts, vocabulary)
        return meteor(corpus, self._knowledge).per_image


def statistics(
    hypothesis: Sequence[str], reference: Sequence[str], knowledge: WordMatches
) -> list[float]:
    """What adds up over images, [6]: weighted matches of both sentences, their weighted lengths,
    matched words of both together, and chunks, of which two equal sentences have none."""
    matches = align(hypothesis, reference, knowledge) if hypothesis and reference else []
    mine, theirs = _weights(hypothesis, knowledge), _weights(reference, knowledge)
    matched = sum(m.at_length + m.length for m in matches)
    chunks = _chunks(matches)
    if chunks == 1 and matched == len(hypothesis) + len(reference):
        chunks = 0
    ours = reference_matches = 0.0  # added up from left to right, which Python's `sum` is not
    for m in matches:
        ours += WEIGHTS[m.module] * sum(mine[m.at : m.at + m.at_length])
        reference_matches += WEIGHTS[m.module] * sum(theirs[m.start : m.start + m.length])
    return [
        ours,
        reference_matches,
        sum(mine),
        sum(theirs),
        matched,
        chunks,
    ]


def score(sums: Floats) -> Floats:
    """The score, 0 to 1, of statistics [..., 6] of one image or summed over images."""
    matches, reference_matches, length, reference_length, matched, chunks = np.moveaxis(sums, -1, 0)
    precision = matches / np.maximum(length, 1e-300)
    recall = reference_matches / np.maximum(reference_length, 1e-300)
    both = ALPHA * precision + (1 - ALPHA) * recall
    mean = np.where(both > 0, precision * recall / np.where(both > 0, both, 1), 0)
    fragments = chunks / np.maximum(matched / 2, 0.5)
    return np.asarray(mean * (1 - GAMMA * fragments**BETA))


def _weights(words: Sequence[str], knowledge: WordMatches) -> list[float]:
    return [1 - DELTA if word in knowledge.function_words else DELTA for word in words]


def _chunks(matches: Sequence[Match]) -> int:
    """Runs of matches that follow each other in both sentences."""
    ends = [(m.start + m.length, m.at + m.at_length) for m in matches]
    starts = [(m.start, m.at) for m in matches[1:]]
    return bool(matches) + sum(end != start for end, start in zip(ends, starts, strict=False))


# -- alignment ----------------------------------------------------------------------------------


class Match(NamedTuple):
    """Words of the reference (from `start`) that match words of the hypothesis (from `at`)."""

    module: str
    start: int
    length: int
    at: int
    at_length: int


class _Option(NamedTuple):
    """A match, and what a path that takes it gains: weighted matched words, which the jar cuts down
    to whole ones, words of the hypothesis, a bit each, and distance."""

    match: Match
    gained: int
    used: int
    distance: int

    @classmethod
    def of(cls, match: Match) -> _Option:
        weight = WEIGHTS[match.module]
        gained = int(match.length * weight) + int(match.at_length * weight)
        used = ((1 << match.at_length) - 1) << match.at
        return cls(match, gained, used, abs(match.start - match.at))


class _Path(NamedTuple):
    """A partial alignment up to some word of the reference, and what the beam search compares."""

    order: tuple[int, int, int] = (0, 0, 0)  # matched words (negative), chunks, distance
    matches: tuple[Match, ...] = ()
    used: int = 0  # words of the hypothesis, a bit each
    next_word: int = 0
    end: int = -1  # of the last match in the hypothesis; -1 after a gap

    def taking(self, option: _Option, distance: int) -> _Path:
        """The path with one match more."""
        matched, chunks, _ = self.order
        _, start, length, at, at_length = match = option.match
        order = (matched - option.gained, chunks + (self.end not in (-1, at)), distance)
        used = self.used | option.used
        return _Path(order, (*self.matches, match), used, start + length, at + at_length)

    def passing(self, distance: int) -> _Path:
        """The path with the next word left unmatched."""
        matched, chunks, _ = self.order
        order = (matched, chunks + (self.end != -1), distance)
        return _Path(order, self.matches, self.used, self.next_word + 1, -1)


def align(
    hypothesis: Sequence[str], reference: Sequence[str], knowledge: WordMatches
) -> list[Match]:
    """The matches of the best alignment, in the reference's order."""
    found = _find(hypothesis, reference, knowledge)
    fixed, taken = _unambiguous(found)
    if len(fixed) == sum(map(len, found)):
        return list(fixed.values())
    options = [[_Option.of(match) for match in of_word] for of_word in found]
    paths = [_Path(used=sum(options[place][0].used for place in fixed))]
    for place in range(len(reference)):
        paths.sort(key=attrgetter("order"))
        following: list[_Path] = []
        for path in paths[:BEAM]:
            if place < path.next_word:
                following.append(path)
            elif place not in taken:
                following += _through_options(path, options[place])
            elif path.next_word in fixed:
                (option,) = options[path.next_word]
                following.append(path.taking(option, path.order[2] + option.distance))
        paths = following or paths[:1]
    paths.sort(key=attrgetter("order"))
    finished = [path.passing(path.order[2]) for path in paths[:BEAM]]  # closes an open chunk
    return list(min(finished, key=attrgetter("order")).matches)


def _through_options(path: _Path, options: Sequence[_Option]) -> list[_Path]:
    following = []
    distance = path.order[2]
    for option in options:
        if path.used & option.used:
            continue
        following.append(path.taking(option, distance))
        # As in the jar, a match's distance is added to the alternatives after it.
        distance += option.distance
    return [*following, path.passing(distance)]


def _unambiguous(options: list[list[Match]]) -> tuple[dict[int, Match], set[int]]:
    """Matches without an alternative, by their first word, and the reference's words they take."""
    covering = Counter(word for of_word in options for match in of_word for word in _covered(match))
    fixed = {
        place: of_word[0]
        for place, of_word in enumerate(options)
        if len(of_word) == 1 and all(covering[word] == 1 for word in _covered(of_word[0]))
    }
    taken = {m.start + offset for m in fixed.values() for offset in range(m.length)}
    return fixed, taken


def _covered(match: Match) -> list[tuple[str, int]]:
    mine = [("hypothesis", match.at + offset) for offset in range(match.at_length)]
    return mine + [("reference", match.start + offset) for offset in range(match.length)]


def _find(
    hypothesis: Sequence[str], reference: Sequence[str], knowledge: WordMatches
) -> list[list[Match]]:
    """All matches by the reference's word they start at, module by module."""
    options: list[list[Match]] = [[] for _ in reference]

    def pair(module: str, at_of: Callable[[str], Iterable[int]]) -> None:
        for place, word in enumerate(reference):
            options[place] += [Match(module, place, 1, at, 1) for at in at_of(word)]

    places = _places(hypothesis)
    pair("exact", lambda word: places.get(word, ()))
    if list(hypothesis) == list(reference):
        return options
    stems = _places([stem(word) for word in hypothesis])
    pair("stem", lambda word: [at for at in stems.get(stem(word), ()) if hypothesis[at] != word])
    if "synonym" in knowledge.modules:
        mine = [(at, other, knowledge.meanings[other]) for at, other in enumerate(hypothesis)]

        def alike(word: str) -> list[int]:
            theirs = knowledge.meanings[word]
            return [at for at, other, ids in mine if other != word and not ids.isdisjoint(theirs)]

        pair("synonym", alike)
    for place, length, at, at_length in _phrases(reference, hypothesis, knowledge):
        options[place].append(Match("paraphrase", place, length, at, at_length))
    for at, at_length, place, length in _phrases(hypothesis, reference, knowledge):
        options[place].append(Match("paraphrase", place, length, at, at_length))
    return options


def _places(words: Sequence[str]) -> dict[str, list[int]]:
    """Where each word stands."""
    places: dict[str, list[int]] = {}
    for at, word in enumerate(words):
        places.setdefault(word, []).append(at)
    return places


def _phrases(
    of: Sequence[str], into: Sequence[str], knowledge: WordMatches
) -> list[tuple[int, int, int, int]]:
    """Start and length of phrases of one sentence, and of their paraphrases in the other."""
    found = []
    of, into, places = tuple(of), tuple(into), _places(into)
    for start in range(len(of)):
        longest = knowledge.longest_phrase.get(of[start], 0)
        for end in range(start + 1, min(start + longest, len(of)) + 1):
            for other in knowledge.paraphrases.get(of[start:end], ()):
                for at in places.get(other[0], ()):
                    if into[at : at + len(other)] == other:
                        found.append((start, end - start, at, len(other)))
    return found
