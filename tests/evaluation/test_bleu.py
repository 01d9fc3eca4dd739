from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from captioner.errors import DataError
from captioner.evaluation.bleu import Bleu, corpus_bleu

FLICKR8K = Path(
    os.environ.get("CAPTIONER_FLICKR8K", Path(__file__).parents[2].parent / "shared" / "flickr8k")
)
Tokens = list[str]


def counts(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def coco_bleu(
    references: list[list[Tokens]], hypotheses: list[Tokens], penalise: bool
) -> list[float]:
    """BleuScorer.compute_score(option="closest") of coco-caption, its formula written out."""
    tiny, small = 1e-15, 1e-9
    guess, correct = [0] * 4, [0] * 4
    test_length = reference_length = 0
    for of_image, hypothesis in zip(references, hypotheses, strict=True):
        test_length += len(hypothesis)
        reference_length += min((abs(len(r) - len(hypothesis)), len(r)) for r in of_image)[1]
        for k in range(4):
            guess[k] += max(0, len(hypothesis) - k)
            highest: Counter[tuple[str, ...]] = Counter()
            for reference in of_image:
                highest |= counts(reference, k + 1)
            correct[k] += sum((counts(hypothesis, k + 1) & highest).values())
    product, bleus = 1.0, []
    for k in range(4):
        product *= (correct[k] + tiny) / (guess[k] + small)
        bleus.append(product ** (1 / (k + 1)) if all(correct[: k + 1]) else 0.0)
    ratio = (test_length + tiny) / (reference_length + small)
    factor = math.exp(1 - 1 / ratio) if penalise and ratio < 1 else 1.0
    return [bleu * factor for bleu in bleus]


def random_corpus(
    seed: int, images: int = 40, longest: int = 14
) -> tuple[list[list[Tokens]], list[Tokens]]:
    draw = random.Random(seed)
    words = ["a", "the", "dog", "cat", "runs"]

    def caption() -> Tokens:
        return draw.choices(words, weights=[5, 3, 2, 2, 1], k=draw.randint(0, longest))

    return [[caption() for _ in range(draw.randint(1, 7))] for _ in range(images)], [
        caption() for _ in range(images)
    ]


@pytest.mark.parametrize("penalise", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_coco_captions_formula(seed: int, penalise: bool) -> None:
    # From seed 6 on hypotheses are short: the penalty, and captions with fewer words than an order.
    references, hypotheses = random_corpus(seed)
    hypotheses = [h[: 4 if seed >= 6 else None] for h in hypotheses]
    bleu = corpus_bleu(references, hypotheses, brevity_penalty=penalise)
    expected = coco_bleu(references, hypotheses, penalise)
    assert bleu.scores == pytest.approx([100 * e for e in expected], abs=1e-7)
    assert expected[3] > 0 and (seed < 6 or (bleu.brevity_penalty < 1) is penalise)


def test_agrees_with_pycocoevalcap() -> None:
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed")
    for seed in range(4):
        references, hypotheses = random_corpus(seed)
        theirs, _ = scorer.Bleu(4).compute_score(
            {i: [" ".join(r) for r in of_image] for i, of_image in enumerate(references)},
            {i: [" ".join(h)] for i, h in enumerate(hypotheses)},
            verbose=0,
        )
        ours = corpus_bleu(references, hypotheses)
        assert ours.scores == pytest.approx([100 * t for t in theirs], abs=1e-5)


def test_a_hand_worked_pair() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, no four in a row; closest length 6.
    bleu = corpus_bleu(
        [[["the", "cat", "sat", "on", "a", "mat"], ["a", "b"]]],
        [["the", "cat", "on", "a", "mat", "mat"]],
    )
    one, two, three = 5 / 6, 3 / 5, 1 / 4
    assert bleu.scores == pytest.approx(
        (100 * one, 100 * (one * two) ** (1 / 2), 100 * (one * two * three) ** (1 / 3), 0.0)
    )
    assert (bleu.brevity_penalty, bleu.length_ratio) == (1.0, 1.0)


def test_matches_are_clipped_at_one_references_count() -> None:
    bleu = corpus_bleu([[["the", "cat"], ["the", "the", "dog"]]], [["the"] * 7])
    assert bleu.scores[0] == pytest.approx(100 * 2 / 7)


def test_of_two_equally_close_references_the_shorter_counts() -> None:
    assert corpus_bleu([[["a"] * 4, ["a"] * 6]], [["a"] * 5]).brevity_penalty == 1.0
    assert corpus_bleu([[["a"] * 6]], [["a"] * 5]).brevity_penalty == pytest.approx(math.exp(-0.2))


def test_the_penalty_can_be_switched_off() -> None:
    references, hypotheses = [[list("abcdefgh")]], [list("abcd")]
    on, off = (corpus_bleu(references, hypotheses, brevity_penalty=b) for b in (True, False))
    assert off == Bleu(scores=(100.0,) * 4, brevity_penalty=1.0, length_ratio=0.5)
    assert on.scores == pytest.approx([100 * math.exp(-1)] * 4)


def test_the_references_themselves_score_100() -> None:
    references, _ = random_corpus(3, longest=9)
    bleu = corpus_bleu(references, [of_image[0] for of_image in references])
    assert bleu.scores == pytest.approx((100.0,) * 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("references", "hypotheses"),
    [
        ([[["a", "dog"]]], [[]]),
        ([[[]]], [["a", "dog"]]),
        ([[[]]], [[]]),
        ([[["a", "dog"]]], [["zebra"]]),
    ],
)
def test_without_a_match_every_order_is_zero(
    references: list[list[Tokens]], hypotheses: list[Tokens]
) -> None:
    bleu = corpus_bleu(references, hypotheses)
    assert bleu.scores == (0.0,) * 4
    assert math.isfinite(bleu.length_ratio) and math.isfinite(bleu.brevity_penalty)


@pytest.mark.filterwarnings("error")
def test_an_order_without_a_match_is_exactly_zero_and_silent() -> None:
    scores = corpus_bleu([[list("abxcd")]], [list("abycd")]).scores
    assert scores[1] > 0 and scores[2:] == (0.0, 0.0)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="2 hypotheses for 1 images"):
        corpus_bleu([[["a"]]], [["a"], ["b"]])
    with pytest.raises(DataError, match="0 hypotheses"):
        corpus_bleu([], [])
    with pytest.raises(DataError, match="1 of 2 have none, the first at position 1"):
        corpus_bleu([[["a"]], []], [["a"], ["b"]])


def test_people_against_people_on_flickr8k_agree_with_coco_captions_formula() -> None:
    from captioner.data.tokenize import tokenize

    token_file = FLICKR8K / "Flickr8k.token.txt"
    if not token_file.exists():
        pytest.skip(f"Flickr8k's captions are not at {FLICKR8K}; set CAPTIONER_FLICKR8K")
    dev = set((FLICKR8K / "Flickr_8k.devImages.txt").read_text().split())
    captions: dict[str, list[Tokens]] = {}
    for line in token_file.read_text(encoding="utf-8").splitlines():
        key, caption = line.split("\t", 1)
        if (name := key.split("#")[0]) in dev:
            captions.setdefault(name, []).append(tokenize(caption))
    assert len(captions) == 1000
    references, hypotheses = [c[1:] for c in captions.values()], [c[0] for c in captions.values()]
    expected = [100 * e for e in coco_bleu(references, hypotheses, True)]
    assert corpus_bleu(references, hypotheses).scores == pytest.approx(expected, abs=1e-7)
