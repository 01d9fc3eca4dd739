"""CIDEr-D, which coco-caption prints as CIDEr, and the unclipped CIDEr (Vedantam et al. 2015).

Legend: I images, D different n-grams. A weight is count x (log I - log document frequency); the
document frequency of an n-gram is the number of images one of whose references has it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from captioner.errors import DataError
from captioner.evaluation import compiled
from captioner.evaluation.bleu import Matches
from captioner.evaluation.corpus import Corpus, Floats, Ints, Sentences, sentences_of
from captioner.evaluation.metric import Metric, mean_metric
from captioner.evaluation.ngrams import ORDERS, CorpusNgrams, Part
from captioner.files import atomic_write, parse_json, read_text
from captioner.restore import Size, restore

SIGMA = 6.0  # words: the width of CIDEr-D's length penalty


class _Table(TypedDict):
    """What is stored of document frequencies."""

    images: Size
    ngrams: dict[str, int]


@dataclass(frozen=True)
class DocumentFrequencies:
    """How many of `images` images have an n-gram (words joined by spaces) in a reference.

    N-grams of one image only may be missing: they count the same as n-grams of none.
    """

    images: int
    counts: Mapping[str, int]

    @classmethod
    def of(cls, references: Iterable[Sequence[Sequence[str]]]) -> DocumentFrequencies:
        """The table of tokenised references, one list of them an image."""
        counts: Counter[str] = Counter()
        images = 0
        for of_image in references:
            images += 1
            ngrams = {
                " ".join(tokens[at : at + order])
                for tokens in of_image
                for order in ORDERS
                for at in range(len(tokens) - order + 1)
            }
            counts.update(ngrams)
        return cls(images, {ngram: count for ngram, count in counts.items() if count > 1})

    def of_words(self, numbers: Mapping[str, int]) -> tuple[Sentences, Ints]:
        """The n-grams whose words all have a number, as sentences, and the count of each."""
        known = [
            ([numbers[word] for word in words], count)
            for words, count in ((x.split(" "), n) for x, n in self.counts.items())
            if all(word in numbers for word in words)
        ]
        counts = np.array([count for _, count in known], np.int64)
        return sentences_of([words for words, _ in known]), counts

    def save(self, path: Path | str) -> None:
        """Write the table as JSON, atomically."""
        with atomic_write(path, "w") as handle:
            handle.write(self.to_json())

    def to_json(self) -> str:
        """The table as JSON, a line."""
        table = {"images": self.images, "ngrams": dict(self.counts)}
        return json.dumps(table, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path | str) -> DocumentFrequencies:
        """Read a saved table; DataError naming the file when it is none."""
        return cls.from_json(read_text(path), str(path))

    @classmethod
    def from_json(cls, text: str, source: str) -> DocumentFrequencies:
        """The table that a text holds; DataError naming `source` when it holds none."""
        content: _Table = restore(_Table, parse_json(text, source), source)
        images, counts = content["images"], content["ngrams"]
        wrong = [k for k, v in counts.items() if not 0 < v <= images]
        if wrong:
            raise DataError(
                f"{source}: {wrong[0]!r} is said to be in {counts[wrong[0]]!r} of {images} images"
            )
        return cls(images, counts)


def cider(
    corpus: Corpus, table: DocumentFrequencies | None = None, *, products: Products | None = None
) -> list[Metric]:
    """CIDEr-D and CIDEr-unclipped in percent (100 times coco-caption's figure; at most 1000).

    Document frequencies are those of the references unless a `table` is given. With those of a
    single image every weight, and so the score, is 0: as in coco-caption. `products` are the
    corpus's with these document frequencies, if they are known.
    """
    if products is None:
        ngrams = corpus_ngrams(corpus, table)
        ngrams.add_up(products := Products(ngrams))
    image = corpus.image_of_reference()
    # Lengths are in pairs of words, as in coco-caption: 0 for a sentence of one word.
    mine, theirs = (np.maximum(0, x.lengths - 1) for x in (corpus.hypotheses, corpus.references))
    penalty = np.exp(-((mine[image] - theirs) ** 2) / (2 * SIGMA**2))
    totals = np.zeros((2, len(corpus)))
    for clipped, plain in products.cosines():
        by_image = [np.bincount(image, x, len(corpus)) for x in (clipped * penalty, plain)]
        totals += np.stack(by_image) / corpus.counts
    clipped, plain = 1000.0 * totals / len(ORDERS)
    return [mean_metric("CIDEr-D", clipped), mean_metric("CIDEr-unclipped", plain)]


def corpus_ngrams(corpus: Corpus, table: DocumentFrequencies | None) -> CorpusNgrams:
    """The n-grams of a corpus with the document frequencies of its references or of a table."""
    if table is None:
        return CorpusNgrams(corpus)
    return CorpusNgrams(corpus, table.images, table.of_words(corpus.vocabulary))


def overlap(corpus: Corpus, table: DocumentFrequencies | None) -> tuple[Matches, Products]:
    """What BLEU and CIDEr are made of: the n-grams are counted once for both."""
    ngrams = corpus_ngrams(corpus, table)
    matches, products = Matches(ngrams), Products(ngrams)
    if table is None and compiled.available():
        rarity = products.rarity(np.arange(len(corpus) + 1))
        counted = compiled.ngrams(corpus.rows(), len(corpus.vocabulary), rarity)
        matches.counts, products.sums = counted
    else:
        ngrams.add_up(matches, products)
    return matches, products


class Products:
    """Of each reference's vector of weights the products with its hypothesis's, by order."""

    def __init__(self, ngrams: CorpusNgrams) -> None:
        self._ngrams = ngrams
        # Of each row: its squared length, and for a reference its products, clipped and not.
        self.sums = np.zeros((3, len(ORDERS), len(ngrams.image)))

    def add(self, part: Part) -> None:
        """Add the n-grams of a part, one by one: in the order of their words."""
        norms, clipped, plain = self.sums[:, part.order - 1]
        weights = part.counts * self.rarity(part.documents)
        np.add.at(norms, part.row, weights**2)
        row, mine, theirs = (
            part.row[part.reference],
            weights[part.hypothesis],
            weights[part.reference],
        )
        np.add.at(clipped, row, np.minimum(mine, theirs) * theirs)
        np.add.at(plain, row, mine * theirs)

    def rarity(self, documents: Ints) -> Floats:
        """Of n-grams that so many documents have."""
        return np.asarray(
            np.log(float(self._ngrams.documents)) - np.log(np.maximum(1.0, documents))
        )

    def cosines(self) -> Iterator[tuple[Floats, Floats]]:
        """Of each order the cosines of references and hypotheses, clipped and not, [S] both."""
        rows = self._ngrams.reference
        hypothesis = self._ngrams.hypothesis[self._ngrams.image[rows]]
        for norms, *products in zip(*self.sums, strict=True):
            lengths = np.sqrt(norms)
            both = lengths[hypothesis] * lengths[rows]
            both = np.where(both > 0, both, 1.0)
            clipped, plain = (x[rows] / both for x in products)
            yield clipped, plain
