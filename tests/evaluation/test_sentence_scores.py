"""Scores of single sentences, references counted once: those of the corpus metrics, to rounding."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from captioner.errors import DataError
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import DocumentFrequencies, cider
from captioner.evaluation.corpus import Corpus, encode
from captioner.evaluation.meteor import MeteorReferences
from captioner.evaluation.metrics import aligned
from captioner.evaluation.sentence_scores import (
    CountedReferences,
    Rarities,
    WeightedScore,
    consensus,
)

END = 0


def draw(random: random.Random, longest: int, words: int = 6) -> list[int]:
    return [random.randint(1, words) for _ in range(random.randint(1, longest))]


def corpus_of(
    references: Sequence[Sequence[Sequence[int]]], hypotheses: Sequence[Sequence[int]]
) -> Corpus:
    def text(words: Sequence[int]) -> str:
        return " ".join(map(str, words))

    texts = [[*map(text, of_image)] for of_image in references]
    return encode(texts, [*map(text, hypotheses)], str.split)


def table_of(references: Sequence[Sequence[Sequence[int]]]) -> DocumentFrequencies:
    return DocumentFrequencies.of([[[*map(str, x)] for x in of] for of in references])


@pytest.fixture(scope="module")
def drawn() -> tuple[list[list[list[int]]], list[list[int]], list[int]]:
    """References of 30 images, and 80 sentences: some empty, some of words of no reference, some a
    reference cut short."""
    source = random.Random(4)
    references = [
        [[*draw(source, 12), END] for _ in range(source.randint(1, 5))] for _ in range(30)
    ]
    sentences = [draw(source, 14, words=9) for _ in range(46)] + [[], [END], [3], [99, 99, 99, 99]]
    images = [source.randrange(30) for _ in sentences]
    cut = [of[0][: source.randint(4, 12)] for of in references]
    return references, [*sentences, *cut], [*images, *range(30)]


def test_scores_are_those_of_a_corpus_with_these_document_frequencies(drawn) -> None:
    references, sentences, images = drawn
    counted = CountedReferences([[x[:-1] for x in of] for of in references], end=END)
    corpus = corpus_of([references[k] for k in images], sentences)
    found = counted.scores(sentences, images, bleu=True)
    expected = cider(corpus, table_of(references))[0].per_image
    np.testing.assert_allclose(found.cider, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.bleu, bleu(corpus)[3].per_image, rtol=1e-9, atol=1e-9)
    assert found.cider.max() > 50 and (found.cider == 0).any() and found.bleu.max() > 10
    both = WeightedScore(references=counted, cider=0.7, bleu=0.3)(sentences, images)
    np.testing.assert_allclose(both, (0.7 * found.cider + 0.3 * found.bleu) / 100)


def test_scores_do_not_depend_on_what_is_scored_beside(drawn) -> None:
    references, sentences, images = drawn
    counted = CountedReferences(references)
    whole = counted.scores(sentences, images, bleu=True)
    for k in range(0, 80, 7):
        alone = counted.scores([sentences[k]], [images[k]], bleu=True)
        assert (alone.cider[0], alone.bleu[0]) == pytest.approx((whole.cider[k], whole.bleu[k]))


def test_the_end_counts_as_a_word_unless_it_is_left_out() -> None:
    """A sentence that stops in the middle is worth less than the whole one only where the end
    counts: "a man on a" must not earn what "a man on a" before more words does."""
    references = [[[1, 2, 3, 1, 4]], [[5, 6, 7, 8]]]
    with_end, without = (
        WeightedScore(
            references=CountedReferences(references, end=end),
            end=END,
            end_counts=end is not None,
        )
        for end in (END, None)
    )
    stopped, open_end = [1, 2, 3, 1, END], [1, 2, 3, 1]
    assert without([stopped], [0]) == without([open_end], [0])
    assert with_end([stopped], [0]) < with_end([open_end], [0])
    assert with_end([[1, 2, 3, 1, 4, END]], [0]) == pytest.approx(10)


def test_meteor_of_sentences_is_that_of_their_corpus() -> None:
    """Also of words that the normaliser takes apart, and whatever word stands at the end."""
    words = ["<eos>", "a", "man's", "t-shirt", "shirts", "dog", "runs", "running", "brown"]
    references = [[[1, 8, 5, 6], [1, 5, 7]], [[2, 3], [1, 4], [3]]]
    sentences, images = [[1, 5, 6], [], [8, 8], [2, 4], [3, 1], [5]], [0, 0, 0, 1, 1, 1]
    scored = MeteorReferences(references, words)
    texts = [" ".join(words[word] for word in one) for one in sentences]
    theirs = [[" ".join(words[word] for word in one) for one in references[k]] for k in images]
    corpus = encode(theirs, texts, str.split)
    expected = aligned(corpus)[1].per_image
    np.testing.assert_allclose(scored.scores(sentences, images), expected, rtol=1e-12)
    assert expected.max() > 20
    reward = WeightedScore(
        references=CountedReferences(references, end=0),
        cider=0.5,
        meteor=2.0,
        meteor_references=scored,
        end=0,
    )
    ended = [[*one, 0] for one in sentences]
    cider = CountedReferences(references, end=0).scores(ended, images).cider
    np.testing.assert_allclose(reward(ended, images), (0.5 * cider + 2 * expected) / 100)


@pytest.mark.parametrize(
    ("references", "sentence"),
    [
        ([[[1]], []], "1 of 2 images have none or an empty one, the first: b.jpg"),
        ([[[1], []], [[2]]], "1 of 2 images have none or an empty one, the first: a.jpg"),
        ([], "0 of 0 images"),
    ],
)
def test_references_that_are_missing_or_empty_are_refused(references, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        CountedReferences(references, names=["a.jpg", "b.jpg"])


def test_agreement_is_the_mean_score_against_the_others(drawn) -> None:
    references, sentences, _ = drawn
    sentences, groups = sentences[40:64], [k // 8 for k in range(24)]
    table = table_of(references)
    words = {str(k): k for k in range(10)}
    found = consensus(sentences, groups, Rarities.of_documents(table, words))
    for k in range(24):
        others = [x for n, x in enumerate(sentences) if groups[n] == groups[k] and n != k]
        scores = [cider(corpus_of([[x]], [sentences[k]]), table)[0].value for x in others]
        assert found[k] == pytest.approx(np.mean(scores), abs=1e-9)
    assert consensus([[1, 2]], [0], Rarities.equal()).tolist() == [0]


def test_with_equal_rarities_every_ngram_weighs_the_same() -> None:
    # one of two words shared: (1/2) / (sqrt 2 sqrt 2 / 2)... by hand: 1-grams 1/2, no 2-gram
    found = consensus([[1, 2], [1, 3]], [0, 0], Rarities.equal())
    assert found == pytest.approx([1000 / 4 / 2] * 2)
