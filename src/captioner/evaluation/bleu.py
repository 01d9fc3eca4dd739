"""BLEU-1..4 as coco-caption computes them, from counts that add up over images.

Papineni et al. 2002: clipped n-gram precisions over the whole corpus, geometric mean, brevity
penalty against the closest reference length (the shorter of two equally close), no smoothing but
coco-caption's two guards against division by zero.
"""

from functools import partial

import numpy as np

from captioner.evaluation.metric import Metric
from captioner.evaluation.ngrams import ORDERS, Corpus, Floats, Ints, count_ngrams, find, starts

# BleuScorer's: added to matches and lengths, and to what they are divided by. An order without a
# match therefore scores hardly more than 0, not 0.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(corpus: Corpus, *, brevity_penalty: bool = True) -> list[Metric]:
    """BLEU-1 to BLEU-4 (0 to 100); without the penalty it is what neuraltalk and neon report."""
    return bleu_metrics(bleu_statistics(corpus), penalise=brevity_penalty)


def bleu_metrics(statistics: Floats, *, penalise: bool) -> list[Metric]:
    """BLEU-1 to BLEU-4 of statistics [I, 10]."""
    by_order = [partial(_bleu, order=order, penalise=penalise) for order in ORDERS]
    return [
        Metric(f"BLEU-{order}", combine(statistics), statistics, combine)
        for order, combine in zip(ORDERS, by_order, strict=True)
    ]


def bleu_statistics(corpus: Corpus) -> Floats:
    """Matches of each order, n-grams offered, length, closest reference length of each image.

    Shape [I, 10]; sums over images are what corpus BLEU is made of.
    """
    return np.concatenate([_part_statistics(part) for part in corpus.chunks()])


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


def _part_statistics(part: Corpus) -> Floats:
    lengths = part.hypotheses.lengths
    matches = [_matches(part, order) for order in ORDERS]
    offered = [np.maximum(0, lengths - order + 1) for order in ORDERS]
    return np.stack([*matches, *offered, lengths, _closest(part)], axis=1)


def _matches(part: Corpus, order: int) -> Floats:
    """N-grams of each hypothesis that a reference has too, at most as often as any one of them."""
    _, mine, theirs = count_ngrams(part, order)
    by_entry = np.argsort(theirs.in_image, kind="stable")
    entries, first = np.unique(theirs.in_image[by_entry], return_index=True)
    if not len(entries):
        return np.zeros(len(part))
    most = np.maximum.reduceat(theirs.counts[by_entry], first)
    at, there = find(entries, mine.in_image)
    clipped = np.where(there, np.minimum(mine.counts, most[at]), 0)
    return np.asarray(np.bincount(mine.sentence, clipped, len(part)), np.float64)


def _closest(part: Corpus) -> Ints:
    """The reference length nearest to each hypothesis's, the shorter of two equally near."""
    lengths, image = part.references.lengths, part.image_of_reference()
    distance = np.abs(lengths - part.hypotheses.lengths[image])
    order = np.lexsort((lengths, distance, image))
    return np.asarray(lengths[order][starts(part.counts)[:-1]])
