"""N-grams numbered and counted in arrays, beside the same counted by dictionaries."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from captioner.evaluation import ngrams
from captioner.evaluation.cider import DocumentFrequencies, cider
from captioner.evaluation.corpus import Corpus, encode, sentences_of
from captioner.evaluation.ngrams import ORDERS, CorpusNgrams, NgramTable

References = list[list[str]]


def drawn(seed: int) -> tuple[References, list[str]]:
    """Captions of few words, which repeat n-grams; some are empty or equal."""
    draw = random.Random(seed)

    def caption() -> str:
        return " ".join(draw.choices("abcde", k=draw.randint(0, 8)))

    images = [[caption() for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(1, 20))]
    return images, [draw.choice([caption(), of_image[0]]) for of_image in images]


def counted(caption: str, order: int) -> Counter[tuple[str, ...]]:
    words = caption.split()
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


def by_dictionaries(references: References, hypotheses: list[str]) -> Iterator[tuple[int, ...]]:
    """Order, row, count and documents of each n-gram of each sentence; and of each pair of a
    hypothesis and a reference with the n-gram the order, both rows and both counts."""
    for order in ORDERS:
        documents = Counter(
            ngram for of in references for ngram in set().union(*(counted(x, order) for x in of))
        )
        row = 0
        for of_image, hypothesis in zip(references, hypotheses, strict=True):
            mine, first = counted(hypothesis, order), row
            for sentence in (hypothesis, *of_image):
                for ngram, times in counted(sentence, order).items():
                    yield order, row, times, documents[ngram]
                    if row > first and ngram in mine:
                        yield order, first, row, mine[ngram], times
                row += 1


def by_arrays(found: CorpusNgrams) -> Iterator[tuple[int, ...]]:
    for part in found:
        for entry in zip(part.row, part.counts, part.documents, strict=True):
            yield (part.order, *map(int, entry))
        for pair in zip(part.hypothesis, part.reference, strict=True):
            rows_and_counts = (*part.row[[*pair]], *part.counts[[*pair]])
            yield (part.order, *map(int, rows_and_counts))


@pytest.mark.parametrize("words", [1, 30, 1 << 17])
def test_the_ngrams_of_a_corpus_are_those_that_dictionaries_count(
    monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    monkeypatch.setattr(ngrams, "PART", words)
    for seed in range(20):
        captions = drawn(seed)
        corpus = encode(*captions, str.split)
        assert sorted(by_arrays(CorpusNgrams(corpus))) == sorted(by_dictionaries(*captions))


def test_scores_are_the_same_to_the_last_bit_in_any_number_of_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captions = drawn(0)
    corpus = encode(*captions, str.split)
    table = DocumentFrequencies.of([[x.split() for x in of] for of in drawn(1)[0] * 3])

    def scores(corpus: Corpus, words: int) -> list[list[float]]:
        monkeypatch.setattr(ngrams, "PART", words)
        found = [*cider(corpus), *cider(corpus, table)]
        return [metric.per_image.tolist() for metric in found]

    assert scores(corpus, 1) == scores(corpus, 40) == scores(corpus, 1 << 17)


@pytest.mark.parametrize("place", [0, 1])
def test_one_reference_against_the_others_is_as_if_encoded_so(place: int) -> None:
    images = [[*of_image, f"{of_image[0]} f"] for of_image in drawn(2)[0]]
    ones = [of_image[place] for of_image in images]
    others = [[*of_image[:place], *of_image[place + 1 :]] for of_image in images]
    found = encode(images, [""] * len(images), str.split).one_against_others(place)
    expected = encode(others, ones, str.split)
    assert [*found.vocabulary.items()] == [*expected.vocabulary.items()]
    assert found.counts.tolist() == expected.counts.tolist()
    for mine, theirs in (
        (found.hypotheses, expected.hypotheses),
        (found.references, expected.references),
    ):
        assert mine.words.tolist() == theirs.words.tolist()
        assert mine.lengths.tolist() == theirs.lengths.tolist()


def test_ngrams_are_numbered_exactly() -> None:
    table = NgramTable(sentences_of([[7, 7, 7, 7, 7], [1, 2]]))
    assert table.size == 7  # 7, 77, 777, 7777, 1, 2, 12
    counted = table.count(sentences_of([[7, 7], [], [2, 1], [2, 1, 2, 1]]))
    rows = zip(counted.sentence, counted.order, counted.counts, counted.ngram < 7, strict=True)
    assert sorted(map(tuple, np.array([*rows]).tolist())) == [
        (0, 1, 2, 1), (0, 2, 1, 1), (2, 1, 1, 1), (2, 1, 1, 1), (2, 2, 1, 0), (3, 1, 2, 1),
        (3, 1, 2, 1), (3, 2, 1, 1), (3, 2, 2, 0), (3, 3, 1, 0), (3, 3, 1, 0), (3, 4, 1, 0),
    ]  # fmt: skip
