"""Consensus reranking: of the sentences found for an image, the one that agrees most with the
others.

Minimum Bayes risk (Kumar and Byrne 2004): among hypotheses h_1..h_K take the one whose expected
score is highest when another of them is the truth, the mean of score(h_k, h_j) over j other than k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from captioner.generation.hypothesis import Hypothesis

Agreement: TypeAlias = Callable[[Sequence[Sequence[int]], Sequence[int]], Iterable[float]]
"""agreement(sentences [S] of token ids, the image of each [S]) -> each one's mean score against the
other sentences of its image [S]."""


def by_consensus(
    found: Sequence[Sequence[Hypothesis]], agreement: Agreement, *, n_best: int
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each image that agree most with its others, best first; of equals
    the one that stood first. Scores stay the model's."""
    sentences = [one.token_ids for of_image in found for one in of_image]
    images = [number for number, of_image in enumerate(found) for _ in of_image]
    scores = iter(agreement(sentences, images))
    ranked = []
    for of_image in found:
        scored = [(float(next(scores)), one) for one in of_image]
        ranked.append([one for _, one in sorted(scored, key=lambda pair: -pair[0])][:n_best])
    return ranked
