"""CIDEr-D and BLEU-4 of single sentences, many at once: against references that are counted once,
and of the sentences of a group against each other.

For training on a score and for reranking, where scores are asked for again and again; the scores of
a corpus, which equal these, are cider.py's and bleu.py's. Sentences are word numbers.

Legend: I images, S sentences, R references, E different n-grams of each sentence, M pairs of equal
n-grams in a sentence and a reference of its image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from captioner.errors import DataError
from captioner.evaluation.bleu import bleu_metrics
from captioner.evaluation.cider import SIGMA, DocumentFrequencies
from captioner.evaluation.corpus import Floats, Ints, Sentences, ranges, sentences_of, starts
from captioner.evaluation.meteor import MeteorReferences
from captioner.evaluation.ngrams import ORDERS, Counted, NgramTable, images_with, pack

WordNumbers = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Rarities:
    """The weight of each n-gram of a table, [G + 1], the last one that of all others.

    CIDEr's is log I - log(the number of I images with the n-gram in a reference).
    """

    table: NgramTable
    values: Floats

    @classmethod
    def of_counts(cls, table: NgramTable, counts: Ints, images: int) -> Rarities:
        """From the number of `images` images that have each n-gram, [G]."""
        seen = np.append(np.maximum(counts, 1), 1)
        return cls(table, np.log(float(images)) - np.log(seen))

    @classmethod
    def of_documents(cls, documents: DocumentFrequencies, numbers: Mapping[str, int]) -> Rarities:
        """Of a saved table: what has words that all have a number."""
        ngrams, images = documents.of_words(numbers)
        table = NgramTable(ngrams)
        counted = table.count(ngrams)
        whole = counted.order == ngrams.lengths[counted.sentence]  # not the parts of an n-gram
        counts = np.zeros(table.size, np.int64)
        counts[counted.ngram[whole]] = images[counted.sentence[whole]]
        return cls.of_counts(table, counts, documents.images)

    @classmethod
    def equal(cls) -> Rarities:
        """All n-grams weigh the same."""
        return cls(NgramTable(sentences_of([])), np.ones(1))

    def __getitem__(self, ngram: Ints) -> Floats:
        return self.values[np.minimum(ngram, len(self.values) - 1)]


class Scores(NamedTuple):
    """CIDEr-D and BLEU-4 of each sentence, [S], in percent as everywhere in evaluation/."""

    cider: Floats
    bleu: Floats


class CountedReferences:
    """The references of images, counted once, with the document frequencies of their n-grams.

    `references`: of each image its sentences; `end` is a word that is put at the end of all of
    them. Raises DataError naming an image, by `names`, that has none, or an empty one.
    """

    def __init__(
        self,
        references: Sequence[WordNumbers],
        *,
        end: int | None = None,
        names: Sequence[str] = (),
    ) -> None:
        _check(references, names)
        self.counts = np.array([*map(len, references)], np.int64)  # [I]
        self.first = starts(self.counts)  # of each image's references, [I + 1]
        last = [] if end is None else [end]
        sentences = sentences_of([[*one, *last] for of_image in references for one in of_image])
        self.lengths = sentences.lengths
        image_of = np.repeat(np.arange(len(self.counts)), self.counts)
        table = NgramTable(sentences)
        counted = table.count(sentences)
        image = image_of[counted.sentence]
        documents = images_with(counted.ngram, image, table.size)
        self.rarities = Rarities.of_counts(table, documents, len(self.counts))
        self.norms = _norms(counted, self.rarities, len(self.lengths))
        # Sorted by image and n-gram, in the smallest types: there are dozens for each word.
        order = np.argsort(image, kind="stable")
        self._first_entry = starts(np.bincount(image, minlength=len(self.counts)))
        self._reference = counted.sentence[order].astype(np.int32)
        self._ngram = counted.ngram[order].astype(np.int32)
        self._count = counted.counts[order].astype(np.int32)

    def __len__(self) -> int:
        return len(self.counts)

    def scores(self, words: WordNumbers, images: Sequence[int], *, bleu: bool = False) -> Scores:
        """Of each sentence against the references of its image, whose number is given; BLEU-4 is 0
        unless asked for."""
        sentences, image = sentences_of(words), np.asarray(images, np.int64)
        own = self.rarities.table.count(sentences)
        shown, group = np.unique(image, return_inverse=True)
        sizes = np.diff(self._first_entry)[shown]
        entries = ranges(self._first_entry[shown], sizes)
        theirs = pack(np.repeat(np.arange(len(shown)), sizes), self._ngram[entries])
        mine, at = _equal(pack(group[own.sentence], own.ngram), theirs)
        entries = entries[at]
        reference, counts = (x[entries].astype(np.int64) for x in (self._reference, self._count))
        pairs = _Pairs(mine, reference, counts)
        values = _similarities(
            own, pairs, self.rarities, (sentences.lengths, self.lengths), self.norms
        )
        total = np.bincount(own.sentence[mine], values, len(words))
        cider = np.asarray(total / self.counts[image])
        return Scores(cider, self._bleu(sentences, image, own, pairs) if bleu else 0 * cider)

    def _bleu(self, sentences: Sentences, image: Ints, own: Counted, pairs: _Pairs) -> Floats:
        """As `bleu.bleu` of a corpus of one image."""
        most = np.zeros(len(own.counts), np.int64)  # of each n-gram in one reference
        np.maximum.at(most, pairs.mine, pairs.counts)
        matches = _by_order(own, np.minimum(own.counts, most), len(image))
        offered = np.maximum(0, sentences.lengths[:, None] - np.array(ORDERS) + 1)
        closest = self._closest(sentences.lengths, image)
        lengths = np.stack([sentences.lengths, closest], axis=1)
        statistics = np.concatenate([matches, offered, lengths], axis=1)
        return bleu_metrics(statistics, penalise=True)[-1].per_image

    def _closest(self, lengths: Ints, image: Ints) -> Ints:
        """The reference length nearest to each sentence's, the shorter of two equally near."""
        sizes = self.counts[image]
        theirs = self.lengths[ranges(self.first[image], sizes)]
        sentence = np.repeat(np.arange(len(image)), sizes)
        order = np.lexsort((theirs, np.abs(theirs - lengths[sentence]), sentence))
        return np.asarray(theirs[order][starts(sizes)[:-1]])


@dataclass(frozen=True, kw_only=True)
class WeightedScore:
    """A weighted sum of scores against `references`, in coco-caption's units (1 is 100 %).

    `end` is the word that may stand at a sentence's end: it counts as one of CIDEr-D and BLEU-4
    where the references have it (`end_counts`), and never of METEOR-py, which `meteor_references`
    gives.
    """

    references: CountedReferences
    cider: float = 1.0
    bleu: float = 0.0
    meteor: float = 0.0
    meteor_references: MeteorReferences | None = None
    end: int | None = None
    end_counts: bool = True

    def __call__(self, words: WordNumbers, images: Sequence[int]) -> Floats:
        """Of each sentence, [S]; `images` are the numbers of its image."""
        bare = [one[:-1] if [*one[-1:]] == [self.end] else one for one in words]
        counted = words if self.end_counts else bare
        scores = self.references.scores(counted, images, bleu=self.bleu != 0)
        total = self.cider * scores.cider + self.bleu * scores.bleu
        if self.meteor and self.meteor_references is not None:
            total = total + self.meteor * self.meteor_references.scores(bare, images)
        return np.asarray(total / 100)


def consensus(words: WordNumbers, groups: Sequence[int], rarities: Rarities) -> Floats:
    """Mean CIDEr-D of each sentence against the others of its group, in percent, [S]; 0 where there
    are none."""
    sentences, group = sentences_of(words), np.asarray(groups, np.int64)
    own = rarities.table.count(sentences)
    key = pack(group[own.sentence], own.ngram)
    sorted_by_key = np.argsort(key, kind="stable")
    mine, at = _equal(key, key[sorted_by_key])
    theirs = sorted_by_key[at]
    others = own.sentence[mine] != own.sentence[theirs]
    mine, theirs = mine[others], theirs[others]
    values = _similarities(
        own,
        _Pairs(mine, own.sentence[theirs], own.counts[theirs]),
        rarities,
        (sentences.lengths,) * 2,
        _norms(own, rarities, len(words)),
    )
    total = np.bincount(own.sentence[mine], values, len(words))
    return np.asarray(total / np.maximum(1, np.bincount(group)[group] - 1))


class _Pairs(NamedTuple):
    """Equal n-grams: the entry of a sentence, the reference, and how often it has it, [M]."""

    mine: Ints
    reference: Ints
    counts: Ints


def _similarities(
    own: Counted,
    pairs: _Pairs,
    rarities: Rarities,
    lengths: tuple[Ints, Ints],  # of sentences [S] and of references [R]
    reference_norms: Floats,  # [R, 4]
) -> Floats:
    """What each pair of equal n-grams adds to the CIDEr-D of a sentence and a reference, [M]."""
    sentence = own.sentence[pairs.mine]
    order = own.order[pairs.mine] - 1
    norms = _norms(own, rarities, len(lengths[0]))[sentence, order]
    norms = norms * reference_norms[pairs.reference, order]
    weight = rarities[own.ngram[pairs.mine]]
    product = np.minimum(own.counts[pairs.mine], pairs.counts) * pairs.counts * weight**2
    # Lengths are in pairs of words, as in coco-caption: 0 for a sentence of one word.
    mine, theirs = (np.maximum(0, one - 1) for one in lengths)
    penalty = np.exp(-((mine[sentence] - theirs[pairs.reference]) ** 2) / (2 * SIGMA**2))
    return np.asarray(1000.0 / len(ORDERS) * product * penalty / np.where(norms > 0, norms, 1.0))


def _norms(counted: Counted, rarities: Rarities, sentences: int) -> Floats:
    """The length of each sentence's vector of weights, by order, [S, 4]."""
    weights = counted.counts * rarities[counted.ngram]
    return np.sqrt(_by_order(counted, weights**2, sentences))


def _by_order(counted: Counted, values: Ints | Floats, sentences: int) -> Floats:
    """The sums of values [E] by sentence and order, [S, 4]."""
    place = counted.sentence * len(ORDERS) + counted.order - 1
    sums = np.bincount(place, values, sentences * len(ORDERS))
    return np.asarray(sums.reshape(sentences, len(ORDERS)), np.float64)


def _equal(keys: Ints, ordered: Ints) -> tuple[Ints, Ints]:
    """All pairs of equal entries of keys and of sorted ones: the place of each."""
    low = np.searchsorted(ordered, keys)
    counts = np.searchsorted(ordered, keys, side="right") - low
    return np.repeat(np.arange(len(keys)), counts), ranges(low, counts)


def _check(references: Sequence[WordNumbers], names: Sequence[str]) -> None:
    lacking = [k for k, of_image in enumerate(references) if not all(of_image) or not of_image]
    if lacking or not references:
        first = f", the first: {names[lacking[0]] if names else lacking[0]}" if lacking else ""
        raise DataError(
            f"a score needs references of one word or more for every image: {len(lacking)} of "
            f"{len(references)} images have none or an empty one{first}"
        )
