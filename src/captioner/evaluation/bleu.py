"""BLEU-1..4 as coco-caption computes them, from counts that add up over images.

Papineni et al. 2002: clipped n-gram precisions over the whole corpus, geometric mean, brevity
penalty against the closest reference length (the shorter of two equally close), no smoothing but
coco-caption's two guards against division by zero.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from captioner.evaluation.corpus import Corpus, Floats, Ints, starts
from captioner.evaluation.metric import Metric
from captioner.evaluation.ngrams import ORDERS, CorpusNgrams, Part

# BleuScorer's: added to matches and lengths, and to what they are divided by. An order without a
# match therefore scores hardly more than 0, not 0.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(
    corpus: Corpus, *, brevity_penalty: bool = True, matches: Matches | None = None
) -> list[Metric]:
    """BLEU-1 to BLEU-4 (0 to 100); without the penalty it is what neuraltalk and neon report.

    `matches` are the corpus's, if they are known.
    """
    return bleu_metrics(bleu_statistics(corpus, matches), penalise=brevity_penalty)


def bleu_metrics(statistics: Floats, *, penalise: bool) -> list[Metric]:
    """BLEU-1 to BLEU-4 of statistics [I, 10]."""
    by_order = [partial(_bleu, order=order, penalise=penalise) for order in ORDERS]
    return [
        Metric(f"BLEU-{order}", combine(statistics), statistics, combine)
        for order, combine in zip(ORDERS, by_order, strict=True)
    ]


def bleu_statistics(corpus: Corpus, matches: Matches | None = None) -> Floats:
    """Matches of each order, n-grams offered, length, closest reference length of each image.

    Shape [I, 10]; sums over images are what corpus BLEU is made of.
    """
    if matches is None:
        ngrams = CorpusNgrams(corpus)
        ngrams.add_up(matches := Matches(ngrams))
    lengths = corpus.hypotheses.lengths
    offered = np.maximum(0, lengths[:, None] - np.array(ORDERS) + 1)
    return np.column_stack([matches.counts, offered, lengths, _closest(corpus)])


class Matches:
    """N-grams of each hypothesis that a reference has too, at most as often as any one of them:
    `counts` by image and order, [I, 4]."""

    def __init__(self, ngrams: CorpusNgrams) -> None:
        self.counts = np.zeros((len(ngrams.hypothesis), len(ORDERS)))
        self._image = ngrams.image

    def add(self, part: Part) -> None:
        """Add the n-grams of a part."""
        mine, first = np.unique(part.hypothesis, return_index=True)
        if len(mine):
            most = np.maximum.reduceat(part.counts[part.reference], first)
            clipped = np.minimum(part.counts[mine], most)
            np.add.at(self.counts[:, part.order - 1], self._image[part.row[mine]], clipped)


def brevity_penalty(sums: Floats) -> Floats:
    """The penalty of summed statistics [..., 10]: 1 unless shorter than the references."""
    ratio = (sums[..., 8] + _TINY) / (sums[..., 9] + _SMALL)
    return np.asarray(np.exp(np.minimum(0.0, 1 - 1 / ratio)))


def length_ratio(sums: Floats) -> float:
    """Length over closest reference length; 0 where all references are empty."""
    return float(sums[8] / sums[9]) if sums[9] else 0.0


def _bleu(sums: Floats, *, order: int, penalise: bool) -> Floats:
    precisions = (sums[..., :order] + _TINY) / (sums[..., 4 : 4 + order] + _SMALL)
    score = 100.0 * np.prod(precisions, axis=-1) ** (1 / order)
    return np.asarray(score * brevity_penalty(sums) if penalise else score)


def _closest(corpus: Corpus) -> Ints:
    """The reference length nearest to each hypothesis's, the shorter of two equally near."""
    lengths, image = corpus.references.lengths, corpus.image_of_reference()
    distance = np.abs(lengths - corpus.hypotheses.lengths[image])
    order = np.lexsort((lengths, distance, image))
    return np.asarray(lengths[order][starts(corpus.counts)[:-1]])
