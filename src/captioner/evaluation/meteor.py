"""METEOR 1.5 in Python, called METEOR-py: `METEOR` is the Java jar's (java_metrics.py).

Denkowski and Lavie 2014, "Meteor Universal", with the English parameters of its ranking task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from captioner.evaluation.meteor_align import WEIGHTS, Match, align
from captioner.evaluation.meteor_words import WordMatches
from captioner.evaluation.metric import Metric
from captioner.evaluation.ngrams import Floats

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75


def meteor(
    references: Sequence[Sequence[Sequence[str]]],
    hypotheses: Sequence[Sequence[str]],
    knowledge: WordMatches,
) -> Metric:
    """METEOR-py, 0 to 100; of each image the reference that scores highest counts.

    The corpus score is that of the summed statistics, as the jar's. An image without a match, an
    empty hypothesis and an empty reference score 0.
    """
    rows = []
    for of_image, hypothesis in zip(references, hypotheses, strict=True):
        words = normalise(hypothesis)
        of_each = [statistics(words, normalise(one), knowledge) for one in of_image]
        rows.append(of_each[int(np.argmax(score(np.stack(of_each))))])
    return meteor_metric(np.stack(rows))


def meteor_metric(table: Floats) -> Metric:
    """The metric of statistics [I, 6]."""
    return Metric("METEOR-py", 100 * score(table), table, lambda sums: 100 * score(sums))


def normalise(tokens: Sequence[str]) -> tuple[str, ...]:
    """Words as the jar's own normaliser leaves them: "t-shirt" is t and shirt, "'s" is ' and s."""
    return tuple(" ".join(tokens).replace("-", " ").replace("'", " ' ").split())


def statistics(
    hypothesis: Sequence[str], reference: Sequence[str], knowledge: WordMatches
) -> Floats:
    """What adds up over images, [6]: weighted matches of both sides, their weighted lengths,
    matched words of both together, and chunks, of which two equal sentences have none."""
    matches = align(hypothesis, reference, knowledge) if hypothesis and reference else []
    mine, theirs = _weights(hypothesis, knowledge), _weights(reference, knowledge)
    matched = sum(m.at_length + m.length for m in matches)
    chunks = _chunks(matches)
    if chunks == 1 and matched == len(hypothesis) + len(reference):
        chunks = 0
    return np.array(
        [
            sum(WEIGHTS[m.module] * sum(mine[m.at : m.at + m.at_length]) for m in matches),
            sum(WEIGHTS[m.module] * sum(theirs[m.start : m.start + m.length]) for m in matches),
            sum(mine),
            sum(theirs),
            matched,
            chunks,
        ]
    )


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
    """Runs of matches that follow each other on both sides."""
    ends = [(m.start + m.length, m.at + m.at_length) for m in matches]
    starts = [(m.start, m.at) for m in matches[1:]]
    return bool(matches) + sum(end != start for end, start in zip(ends, starts, strict=False))
