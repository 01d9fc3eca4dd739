"""METEOR in Python against the jar, and what it does without anything installed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from captioner.data.tokenize import coco_tokens
from captioner.evaluation.corpus import Corpus, encode
from captioner.evaluation.java_metrics import java_meteor
from captioner.evaluation.meteor import align, meteor, normalised, score, statistics
from captioner.evaluation.meteor_words import WordMatches, load_knowledge

BARE = WordMatches(("exact", "stem"))
HYPOTHESES = """
a lady holds a little girl who is trying to catch bubbles
two dogs are playing with each other in the grass
a man 's t-shirt is red
three people drive atvs
a boy in a blue shirt jumps into the water
a dog
the man is holding a camera while the woman is looking at him
a black and white dog runs through the snow
""".strip().splitlines()
REFERENCES = """
a woman is holding a little girl who is trying to catch bubbles|a young girl plays with bubbles
two dogs play together on a lawn|a brown dog and a white dog are running|dogs playing
the red t-shirt of a man|a man wears a red shirt
three people on atv 's outside|people ride four wheelers through the field
a child leaps into a pool|a young boy in a blue t-shirt is jumping in the water
a dog
a man photographs a woman|the woman looks at the man who holds a camera
a dog that is black and white is running in snow|dog runs
""".strip().splitlines()


def corpus() -> Corpus:
    return normalised(encode([line.split("|") for line in REFERENCES], HYPOTHESES, coco_tokens))


@pytest.mark.slow
def test_with_its_words_installed_it_equals_the_jar() -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    if shutil.which("java") is None:
        pytest.skip("the official METEOR needs Java, which is not installed")
    words = corpus()
    modules, knowledge = load_knowledge(frozenset(words.vocabulary))
    assert modules == ("exact", "stem", "synonym", "paraphrase")
    references = [[coco_tokens(c) for c in line.split("|")] for line in REFERENCES]
    theirs = java_meteor(references, [coco_tokens(c) for c in HYPOTHESES])
    ours = meteor(words, knowledge)
    np.testing.assert_allclose(ours.per_image, theirs.per_image, atol=1e-9)
    assert ours.value == pytest.approx(theirs.value, abs=1e-9)
    # ... and the words matter: without them the same captions score otherwise.
    assert abs(meteor(words, BARE).value - theirs.value) > 0.5


def test_a_hand_worked_pair() -> None:
    # dog, runs match exactly, "the" does not: content words 2 of 2, and 1 function word a side.
    matches = align(("a", "dog", "runs"), ("the", "dog", "runs"), BARE)
    assert [(m.start, m.at, m.module) for m in matches] == [(1, 1, "exact"), (2, 2, "exact")]
    precision = 1.5 / 1.75
    penalty = 0.6 * (1 / 2) ** 0.2
    found = score(np.array(statistics(("a", "dog", "runs"), ("the", "dog", "runs"), BARE)))
    assert float(found) == pytest.approx(precision * (1 - penalty))


def test_stems_weigh_less_and_a_broken_order_costs() -> None:
    def value(hypothesis: str, reference: str) -> float:
        return float(score(np.array(statistics(hypothesis.split(), reference.split(), BARE))))

    assert value("dog runs", "dog runs") == pytest.approx(1)
    assert 0 < value("dog running", "dog runs") < 1
    assert value("runs dog", "dog runs") < value("dog runs", "dog runs")
    assert value("cat", "dog") == value("", "dog") == value("dog", "") == value("", "") == 0


def test_repeated_words_are_aligned_in_as_few_chunks_as_can_be() -> None:
    words = ["a", "dog", "and", "a", "cat", "and", "a", "bird", "and", "a", "fish"]
    matches = align(words, [*words[6:], *words[:6]], BARE)
    assert len(matches) == len(words)
    assert statistics(words, [*words[6:], *words[:6]], BARE)[5] <= 3


def test_a_multi_word_paraphrase_counts_all_its_words() -> None:
    knowledge = WordMatches(
        ("exact", "stem", "paraphrase"), paraphrases={("take", "part"): (("participate",),)}
    )
    (match,) = align(("participate",), ("take", "part"), knowledge)
    assert (match.length, match.at_length, match.module) == (2, 1, "paraphrase")
