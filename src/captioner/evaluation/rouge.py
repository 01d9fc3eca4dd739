"""ROUGE-L as coco-caption computes it (Lin 2004, beta 1.2), many pairs of sentences at once.

Legend: P pairs of a hypothesis and a reference, T the longest of their sentences.
"""

import numpy as np
from numpy.typing import NDArray

from captioner.evaluation import compiled
from captioner.evaluation.corpus import Corpus, Ints, Sentences, starts
from captioner.evaluation.metric import Metric, mean_metric

NDArrayInt32 = NDArray[np.int32]
BETA = 1.2
_PAIRS = 256  # of one batch: bounds memory however long a caption is
_NO_HYPOTHESIS, _NO_REFERENCE = -2, -3  # paddings that equal nothing


def rouge_l(corpus: Corpus) -> Metric:
    """ROUGE-L, 0 to 100: F of the best precision and the best recall over an image's references.

    As in coco-caption an empty sentence counts as one word, which only another empty one matches.
    """
    image = corpus.image_of_reference()
    if compiled.available():
        common = compiled.lcs_lengths(corpus.rows())
    else:
        common = lcs_lengths(corpus.hypotheses, corpus.references, image)
    first = starts(corpus.counts)[:-1]
    mine = np.maximum(1, corpus.hypotheses.lengths)[image]
    precision = np.maximum.reduceat(common / mine, first)
    recall = np.maximum.reduceat(common / np.maximum(1, corpus.references.lengths), first)
    below = recall + BETA**2 * precision
    score = 100 * (1 + BETA**2) * precision * recall / np.where(below > 0, below, 1)
    return mean_metric("ROUGE-L", score)


def lcs_lengths(hypotheses: Sentences, references: Sentences, hypothesis_of: Ints) -> Ints:
    """The longest common subsequence of each reference with its hypothesis, in words, [P]."""
    common = np.zeros(len(references.lengths), np.int64)
    longest = np.maximum(references.lengths, hypotheses.lengths[hypothesis_of])
    order = np.argsort(longest, kind="stable")  # pairs of similar length together
    begins = hypotheses.starts(), references.starts()
    for rows in np.array_split(order, len(order) // _PAIRS + 1):
        mine = _padded(hypotheses, begins[0], hypothesis_of[rows], _NO_HYPOTHESIS)
        common[rows] = _lcs(mine, _padded(references, begins[1], rows, _NO_REFERENCE))
    return common


def _padded(sentences: Sentences, begins: Ints, rows: Ints, padding: int) -> NDArrayInt32:
    """The sentences of `rows` as a rectangle [P, T]; an empty one holds the empty word, -1."""
    lengths = sentences.lengths[rows]
    column = np.arange(max(1, int(lengths.max(initial=0))))
    at = np.minimum(begins[rows][:, None] + column, max(0, len(sentences.words) - 1))
    words = sentences.words if len(sentences.words) else np.zeros(1, np.int32)
    padded = np.where(column < lengths[:, None], words[at], padding).astype(np.int32)
    padded[lengths == 0, 0] = -1
    return padded


def _lcs(mine: NDArrayInt32, theirs: NDArrayInt32) -> Ints:
    # Row by row of the usual table: a cell is the largest of its left neighbour, its upper one, and
    # the upper left one plus a match; the first of these is a running maximum.
    row = np.zeros((len(mine), mine.shape[1] + 1), np.int32)
    for column in theirs.T:
        row[:, 1:] = np.maximum(row[:, 1:], row[:, :-1] + (mine == column[:, None]))
        np.maximum.accumulate(row, axis=1, out=row)
    return row[:, -1].astype(np.int64)
