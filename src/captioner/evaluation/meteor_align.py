"""The alignment at the heart of METEOR 1.5: which words of a caption stand for which.

Denkowski and Lavie 2014: matches of all modules are found first; a beam then walks through the
reference and prefers more matched words, then fewer chunks, then matches that lie closer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from captioner.evaluation.meteor_words import WordMatches, stem

WEIGHTS = {"exact": 1.0, "stem": 0.6, "synonym": 0.8, "paraphrase": 0.6}
BEAM = 40


class Match(NamedTuple):
    """Words of the reference (from `start`) that match words of the hypothesis (from `at`)."""

    module: str
    start: int
    length: int
    at: int
    at_length: int


class _Path(NamedTuple):
    """A way through the reference up to some word: its matches, and what the beam compares."""

    order: tuple[int, int, int] = (0, 0, 0)  # matched words (negative), chunks, distance
    matches: tuple[Match, ...] = ()
    used: int = 0  # words of the hypothesis, a bit each
    next_word: int = 0
    end: int = -1  # of the last match in the hypothesis; -1 after a gap

    def taking(self, match: Match, distance: int) -> _Path:
        """The path with one match more; the jar cuts weighted lengths down to whole words."""
        weight = WEIGHTS[match.module]
        gained = int(match.length * weight) + int(match.at_length * weight)
        order = (self.order[0] - gained, self.order[1] + (self.end not in (-1, match.at)), distance)
        return _Path(
            order,
            (*self.matches, match),
            self.used | _bits(match),
            match.start + match.length,
            match.at + match.at_length,
        )

    def passing(self, distance: int) -> _Path:
        """The path with the next word left unmatched."""
        order = (self.order[0], self.order[1] + (self.end != -1), distance)
        return _Path(order, self.matches, self.used, self.next_word + 1, -1)


def _bits(match: Match) -> int:
    return ((1 << match.at_length) - 1) << match.at


def align(
    hypothesis: Sequence[str], reference: Sequence[str], knowledge: WordMatches
) -> list[Match]:
    """The matches of the best alignment, in the reference's order."""
    options = _find(hypothesis, reference, knowledge)
    fixed, taken = _unambiguous(options)
    paths = [_Path(used=sum(_bits(match) for match in fixed.values()))]
    for place in range(len(reference)):
        paths.sort(key=_order)
        following: list[_Path] = []
        for path in paths[:BEAM]:
            if place < path.next_word:
                following.append(path)
            elif place in taken:
                following += _through_fixed(path, fixed)
            else:
                following += _through_options(path, options[place])
        paths = following or paths[:1]
    paths.sort(key=_order)
    finished = [path.passing(path.order[2]) for path in paths[:BEAM]]  # closes an open chunk
    return list(min(finished, key=_order).matches)


def _order(path: _Path) -> tuple[int, int, int]:
    return path.order


def _through_fixed(path: _Path, fixed: dict[int, Match]) -> list[_Path]:
    match = fixed.get(path.next_word)
    if match is None:
        return []
    return [path.taking(match, path.order[2] + abs(match.start - match.at))]


def _through_options(path: _Path, options: Sequence[Match]) -> list[_Path]:
    following = []
    distance = path.order[2]
    for match in options:
        if path.used & _bits(match):
            continue
        following.append(path.taking(match, distance))
        # As in the jar, a match's distance burdens the alternatives that come after it.
        distance += abs(match.start - match.at)
    return [*following, path.passing(distance)]


def _unambiguous(options: list[list[Match]]) -> tuple[dict[int, Match], set[int]]:
    """Matches that rival no other, by their first word, and the reference's words they take."""
    covering: dict[tuple[str, int], int] = {}
    for match in (match for of_word in options for match in of_word):
        for word in _covered(match):
            covering[word] = covering.get(word, 0) + 1
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
    _pair(options, "exact", hypothesis, reference, lambda a, b: a == b)
    if list(hypothesis) == list(reference):
        return options
    stems = {word: stem(word) for word in {*hypothesis, *reference}}
    _pair(options, "stem", hypothesis, reference, lambda a, b: a != b and stems[a] == stems[b])
    if "synonym" in knowledge.modules:
        meanings = {word: knowledge.meanings(word) for word in stems}
        _pair(
            options, "synonym", hypothesis, reference,
            lambda a, b: a != b and not meanings[a].isdisjoint(meanings[b]),
        )  # fmt: skip
    for place, length, at, at_length in _phrases(reference, hypothesis, knowledge):
        options[place].append(Match("paraphrase", place, length, at, at_length))
    for at, at_length, place, length in _phrases(hypothesis, reference, knowledge):
        options[place].append(Match("paraphrase", place, length, at, at_length))
    return options


def _pair(
    options: list[list[Match]],
    module: str,
    hypothesis: Sequence[str],
    reference: Sequence[str],
    alike: Callable[[str, str], bool],
) -> None:
    for place, word in enumerate(reference):
        options[place] += [
            Match(module, place, 1, at, 1)
            for at, other in enumerate(hypothesis)
            if alike(other, word)
        ]


def _phrases(
    of: Sequence[str], into: Sequence[str], knowledge: WordMatches
) -> list[tuple[int, int, int, int]]:
    """Start and length of phrases of one side, and of their paraphrases on the other."""
    found = []
    words = tuple(into)
    for start in range(len(of)):
        for length in range(1, min(knowledge.longest_phrase, len(of) - start) + 1):
            for other in knowledge.paraphrases.get(tuple(of[start : start + length]), ()):
                found += [
                    (start, length, at, len(other))
                    for at in range(len(words) - len(other) + 1)
                    if words[at : at + len(other)] == other
                ]
    return found
