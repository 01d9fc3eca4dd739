"""BLEU, ROUGE-L and CIDEr against pycocoevalcap, nltk and properties that must hold."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate import bleu_score

from captioner.data.tokenize import coco_tokens
from captioner.errors import ConfigError, DataError
from captioner.evaluation.bleu import bleu, bleu_statistics
from captioner.evaluation.cider import DocumentFrequencies, cider
from captioner.evaluation.corpus import encode
from captioner.evaluation.metrics import FAST, ScoringOptions, measure
from captioner.evaluation.ngrams import ORDERS
from captioner.evaluation.rouge import rouge_l

NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
WORDS = "a the dog cat man runs jumps on in red water".split()  # noqa: SIM905
Captions = list[str]


def values(references: Sequence[Captions], hypotheses: Captions) -> dict[str, float]:
    measured = measure(references, hypotheses)
    return {name: metric.value for name, metric in measured.metrics.items()}


def coco_scores(references: Sequence[Captions], hypotheses: Captions) -> dict[str, Any]:
    """What pycocoevalcap gives on the same tokens, corpus and image by image, 0 to 1 (10)."""
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    refs = {i: [" ".join(coco_tokens(c)) for c in r] for i, r in enumerate(references)}
    hyps = {i: [" ".join(coco_tokens(c))] for i, c in enumerate(hypotheses)}
    corpus, images = Bleu(4).compute_score(refs, hyps, verbose=0)
    found = {f"BLEU-{n}": (corpus[n - 1], images[n - 1]) for n in ORDERS}
    return {
        **found,
        "ROUGE-L": Rouge().compute_score(refs, hyps),
        "CIDEr-D": Cider().compute_score(refs, hyps),
    }


def check_equal(references: Sequence[Captions], hypotheses: Captions) -> None:
    measured = measure(references, hypotheses).metrics
    for name, (corpus, images) in coco_scores(references, hypotheses).items():
        assert measured[name].value / 100 == pytest.approx(corpus, abs=1e-9), name
        np.testing.assert_allclose(measured[name].per_image / 100, images, atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def captions(flickr8k: Path) -> list[Captions]:
    found: dict[str, Captions] = {}
    for line in (flickr8k / "Flickr8k.token.txt").read_text("utf-8").splitlines():
        key, caption = line.split("\t", 1)
        found.setdefault(key.split("#")[0], []).append(caption)
    return [c for c in found.values() if len(c) == 5]


@pytest.mark.parametrize("count", ["five", "one to seven"])
def test_a_thousand_images_agree_with_pycocoevalcap(captions: list[Captions], count: str) -> None:
    draw = random.Random(0)
    hypotheses, references = [], []
    for row in range(1000):
        own, other = captions[row], captions[row + 2000]
        pool = [*own[1:], *other]
        references.append(pool[:5] if count == "five" else draw.sample(pool, draw.randint(1, 7)))
        hypotheses.append(draw.choice([own[0], other[0], captions[row + 4000][0]]))
    check_equal(references, hypotheses)


def random_captions(seed: int, images: int, longest: int = 9) -> tuple[list[Captions], Captions]:
    draw = random.Random(seed)

    def caption() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(0, longest)))

    return [[caption() for _ in range(draw.randint(1, 7))] for _ in range(images)], [
        caption() for _ in range(images)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_degenerate_captions_agree_with_pycocoevalcap(seed: int) -> None:
    # Empty hypotheses and references, single words, duplicates and a single image among them.
    references, hypotheses = random_captions(seed, images=1 if seed == 0 else 60)
    references[0] += references[0][:1] * 2
    hypotheses[-1] = ""
    references[-1][0] = ""
    check_equal(references, hypotheses)


@pytest.mark.parametrize("seed", range(4))
def test_bleu_agrees_with_nltk(seed: int) -> None:
    references, hypotheses = random_captions(seed, images=50)
    corpus = encode(references, hypotheses, coco_tokens)
    tokens = [[list(coco_tokens(c)) for c in r] for r in references]
    own = [list(coco_tokens(c)) for c in hypotheses]
    for order, metric in zip(ORDERS, bleu(corpus), strict=True):
        matched = sum(
            bleu_score.modified_precision(r, h, order).numerator
            for r, h in zip(tokens, own, strict=True)
        )
        assert bleu_statistics(corpus)[:, order - 1].sum() == matched
        precisions = [corpus_precision(tokens, own, n) for n in range(1, order + 1)]
        lengths = [len(h) for h in own]
        nearest = sum(map(bleu_score.closest_ref_length, tokens, lengths))
        penalty = bleu_score.brevity_penalty(nearest, sum(lengths))
        expected = 100 * penalty * math.prod(precisions) ** (1 / order)
        # An order without a match is hardly more than 0 in coco-caption, 0 in nltk.
        assert metric.value == pytest.approx(expected, abs=1e-6 if matched else 0.01)


def corpus_precision(tokens: list[list[Captions]], own: list[Captions], order: int) -> float:
    matched = sum(
        bleu_score.modified_precision(r, h, order).numerator
        for r, h in zip(tokens, own, strict=True)
    )
    return matched / sum(max(0, len(h) - order + 1) for h in own)


def test_without_the_penalty_a_short_caption_scores_its_precision() -> None:
    corpus = encode([["a b c d e f g h"]], ["a b c d"], coco_tokens)
    on, off = (bleu(corpus, brevity_penalty=given)[3].value for given in (True, False))
    assert off == pytest.approx(100)
    assert on == pytest.approx(100 * math.exp(-1))


def test_matches_are_clipped_and_the_shorter_of_two_equally_close_references_counts() -> None:
    clipped = encode([["the cat", "the the dog"]], ["the the the the the the the"], coco_tokens)
    assert bleu(clipped)[0].value == pytest.approx(100 * 2 / 7)
    even = encode([["a a a a", "a a a a a a"]], ["a a a a a"], coco_tokens)
    assert bleu_statistics(even)[0, 9] == 4


def test_rouge_is_of_the_longest_common_subsequence() -> None:
    # lcs "the cat on mat" of 5 and 6 words.
    corpus = encode([["the cat sat on a mat"]], ["the cat on mat x"], coco_tokens)
    precision, recall = 4 / 5, 4 / 6
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(corpus).value == pytest.approx(100 * expected)


def test_a_very_long_caption_is_scored_in_little_memory() -> None:
    long = " ".join(random.Random(0).choices(WORDS, k=1500))
    references = [[long, "a dog"], *[["a dog runs"]] * 50]
    tracemalloc.start()
    found = values(references, [long, *["a dog runs"] * 50])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["ROUGE-L"] == pytest.approx(100)
    assert peak < 60e6


def test_a_saved_table_of_the_references_changes_nothing(tmp_path: Path) -> None:
    references, hypotheses = random_captions(3, images=40)
    corpus = encode(references, hypotheses, coco_tokens)
    table = DocumentFrequencies.of([[coco_tokens(c) for c in r] for r in references])
    table.save(tmp_path / "table.json")
    loaded = DocumentFrequencies.load(tmp_path / "table.json")
    for ours, theirs in zip(cider(corpus), cider(corpus, loaded), strict=True):
        np.testing.assert_allclose(theirs.per_image, ours.per_image, rtol=1e-12)
    rarer = DocumentFrequencies(loaded.images * 10, loaded.counts)
    assert cider(corpus, rarer)[0].value != pytest.approx(cider(corpus)[0].value)
    (tmp_path / "wrong.json").write_text('{"images": 3, "ngrams": {"a": 4}}')
    with pytest.raises(DataError, match=r"wrong\.json: 'a' is said to be in 4 of 3"):
        DocumentFrequencies.load(tmp_path / "wrong.json")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text", ["", "   ", "...", "\U0001f600", "日本語 の 犬", "कुत्ता दौड़ता है", "🐕 dog"]
)
def test_odd_captions_give_finite_scores(text: str) -> None:
    for found in (
        values([["a dog"], ["a cat"]], [text, "a cat"]),
        values([[text], ["a cat"]], ["a dog", "a cat"]),
        values([[text]], [text]),
    ):
        assert all(math.isfinite(value) and value >= 0 for value in found.values())


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="2 hypotheses for 1 images"):
        values([["a"]], ["a", "b"])
    with pytest.raises(DataError, match="0 hypotheses"):
        values([], [])
    with pytest.raises(DataError, match="1 of 2 have none, the first at position 1"):
        values([["a"], []], ["a", "b"])
    with pytest.raises(ConfigError, match="did you mean 'CIDEr'"):
        measure([["a"]], ["a"], ScoringOptions(metrics=["CIDER"]))


def test_a_metric_that_lacks_something_says_so_and_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    options = ScoringOptions(metrics=[*FAST, "METEOR", "SPICE"])
    measured = measure([["a dog"]], ["a dog"], options)
    assert set(measured.unavailable) == {"METEOR", "SPICE"}
    assert all("Java" in reason for reason in measured.unavailable.values())
    assert measured.metrics["BLEU-1"].value == pytest.approx(100)


# -- properties ---------------------------------------------------------------------------------

caption = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
corpora = st.lists(
    st.tuples(st.lists(caption, min_size=1, max_size=4), caption), min_size=2, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(corpora)
def test_scores_lie_in_range(corpus: list[tuple[Captions, str]]) -> None:
    found = values([r for r, _ in corpus], [h for _, h in corpus])
    for name in NAMES:
        assert 0 <= found[name] <= (1000 if name == "CIDEr-D" else 100) + 1e-6


@settings(deadline=None, max_examples=40)
@given(corpora, caption)
def test_a_caption_equal_to_a_reference_scores_highest(
    corpus: list[tuple[Captions, str]], other: str
) -> None:
    references = [r[:1] for r, _ in corpus]
    same = values(references, [r[0] for r in references])
    changed = values(references, [other, *[r[0] for r in references[1:]]])
    for name in ("BLEU-1", "ROUGE-L", "CIDEr-D"):
        assert changed[name] <= same[name] + 1e-9


@settings(deadline=None, max_examples=40)
@given(corpora, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(
    corpus: list[tuple[Captions, str]], draw: random.Random
) -> None:
    before = values([r for r, _ in corpus], [h for _, h in corpus])
    draw.shuffle(corpus)
    after = values([r for r, _ in corpus], [h for _, h in corpus])
    for name in NAMES:
        assert after[name] == pytest.approx(before[name], abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(corpora, caption)
def test_a_reference_more_never_lowers_clipped_matches(
    corpus: list[tuple[Captions, str]], more: str
) -> None:
    hypotheses = [h for _, h in corpus]
    few = encode([r for r, _ in corpus], hypotheses, coco_tokens)
    many = encode([[*r, more] for r, _ in corpus], hypotheses, coco_tokens)
    assert (bleu_statistics(many)[:, :4] >= bleu_statistics(few)[:, :4]).all()
