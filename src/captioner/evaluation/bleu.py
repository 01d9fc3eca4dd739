"""Corpus BLEU-1..4 as coco-caption computes it, on tokens, from nltk's building blocks.

Papineni et al. 2002: clipped n-gram precisions over the whole corpus, geometric mean, brevity
penalty against the closest reference length (the shorter of two equally close), no smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nltk.translate import bleu_score

from captioner.errors import DataError

ORDERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Bleu:
    """BLEU-1..4 (0 to 100), the penalty applied (1 when off), length over reference length."""

    scores: tuple[float, float, float, float]
    brevity_penalty: float
    length_ratio: float


def corpus_bleu(
    references: Sequence[Sequence[Sequence[str]]],
    hypotheses: Sequence[Sequence[str]],
    *,
    brevity_penalty: bool = True,
) -> Bleu:
    """BLEU of one tokenised hypothesis an image against one or more tokenised references an image.

    Every value is finite: an order without a match scores 0, empty hypotheses score 0, and the
    length ratio is 0 where all references are empty. `brevity_penalty=False` is what neuraltalk and
    neon report. Raises DataError when there is nothing to score or an image has no reference.
    """
    _check(references, hypotheses)
    lengths = [len(hypothesis) for hypothesis in hypotheses]
    hypothesis_length = sum(lengths)
    reference_length = sum(map(bleu_score.closest_ref_length, references, lengths))
    penalty = 1.0
    if brevity_penalty:
        penalty = float(bleu_score.brevity_penalty(reference_length, hypothesis_length))
    precisions = [_precision(references, hypotheses, order) for order in ORDERS]
    first, second, third, fourth = (
        100.0 * penalty * math.prod(precisions[:order]) ** (1.0 / order) for order in ORDERS
    )
    return Bleu(
        scores=(first, second, third, fourth),
        brevity_penalty=penalty,
        length_ratio=hypothesis_length / reference_length if reference_length else 0.0,
    )


def _precision(
    references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]], order: int
) -> float:
    matches = sum(
        bleu_score.modified_precision(of_image, hypothesis, order).numerator
        for of_image, hypothesis in zip(references, hypotheses, strict=True)
    )
    # nltk's denominator is at least 1 for every hypothesis; coco-caption counts a caption shorter
    # than `order` as offering no n-gram, which is what corpus BLEU means.
    offered = sum(max(0, len(hypothesis) - order + 1) for hypothesis in hypotheses)
    return matches / offered if offered else 0.0


def _check(
    references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]]
) -> None:
    if len(references) != len(hypotheses) or not hypotheses:
        raise DataError(
            f"BLEU needs one hypothesis for each image, at least one: got {len(hypotheses)} "
            f"hypotheses for {len(references)} images"
        )
    without = [row for row, of_image in enumerate(references) if not of_image]
    if without:
        raise DataError(
            f"BLEU needs a reference for each image: {len(without)} of {len(references)} have "
            f"none, the first at position {without[0]}"
        )
