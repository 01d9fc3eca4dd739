from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from captioner.errors import ConfigError, DataError
from captioner.evaluation import score
from captioner.evaluation.coco_format import ImageId, write_references, write_results
from captioner.evaluation.sanity import describe_captions
from captioner.evaluation.scores import human_scores, match_images, score_files

REFERENCES: dict[ImageId, list[str]] = {
    1: ["A dog runs on the grass .", "The dog is running .", "A brown dog."],
    2: ["Two men's hats.", "Two men play football in the rain"],
}
HYPOTHESES: dict[ImageId, str] = {
    2: "two men play football in the rain",
    1: "a dog runs on the grass",
}


def test_perfect_captions_score_100_and_carry_their_protocol() -> None:
    scores = score(REFERENCES, HYPOTHESES, card={"split": "dev", "beam": 3, "images": 99})
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100.0] * 4)
    assert (scores["brevity_penalty"], scores["length_ratio"]) == pytest.approx((1.0, 1.0))
    card = scores["protocol"]
    assert (card["split"], card["beam"], card["images"]) == ("dev", 3, 2)
    assert card["references_per_image"] == {"min": 2, "mean": 2.5, "max": 3}
    assert card["brevity_penalty"] == "on" and "PTB" in card["tokeniser"]
    assert scores["captions"]["distinct_share"] == 1.0


def test_scores_are_percentages_in_plain_json() -> None:
    scores = score({1: ["a b c d e f g"]}, {1: "a b c"})
    assert scores["BLEU-1"] == pytest.approx(100 * math.exp(1 - 7 / 3))
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_without_the_brevity_penalty_the_card_says_off() -> None:
    scores = score({1: ["a b c d e f g"]}, {1: "a b c"}, brevity_penalty=False)
    assert (scores["BLEU-1"], scores["brevity_penalty"], scores["length_ratio"]) == pytest.approx(
        (100.0, 1.0, 3 / 7)
    )
    assert scores["protocol"]["brevity_penalty"] == "off"


def test_empty_captions_score_zero_not_nan() -> None:
    scores = score({1: ["a dog"], 2: [""]}, {1: "", 2: " . "})
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx([0.0] * 4)
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ({1: ["a"], 2: ["b"]}, {1: "a"}, r"1 of 2 have no caption \(2\)"),
        ({1: ["a"]}, {1: "a", "x": "b"}, r"1 captioned images are unknown \('x'\)"),
        ({i: ["a"] for i in range(9)}, {}, r"9 of 9 have no caption \(0, 1, 2, \.\.\.\)"),
        ({1: ["a"]}, {"1": "a"}, r"no caption \(1\).*unknown \('1'\)"),
        ({}, {}, "nothing to score"),
        (
            {1: ["a"], 2: []},
            {1: "a", 2: "b"},
            r"1 of 2 images have no caption to compare with \(2\)",
        ),
        ({1: ["a"]}, {1: None}, "image 1: expected captions to be strings, found None"),
        ({1: [3]}, {1: "a"}, "found 3"),
    ],
)
def test_what_cannot_be_compared_is_refused(references: Any, hypotheses: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(references, hypotheses)


def test_images_come_in_the_references_order_and_a_subset_is_allowed_when_asked() -> None:
    assert match_images(REFERENCES, HYPOTHESES) == [1, 2]
    assert match_images(REFERENCES, {2: "a"}, subset=True) == [2]
    with pytest.raises(DataError, match="nothing to score"):
        match_images(REFERENCES, {}, subset=True)


def test_files_are_scored_and_the_scores_written(tmp_path: Path) -> None:
    hyp, refs, out = (tmp_path / name for name in ("hyp.json", "refs.json", "out/scores.json"))
    write_results(hyp, HYPOTHESES)
    write_references(refs, REFERENCES)
    scores = score_files(results=hyp, references=refs, out=out, card={"split": "dev"}).scores
    assert json.loads(out.read_text("utf-8")) == scores
    assert scores["BLEU-4"] == pytest.approx(100.0)
    images = json.loads((out.parent / "scores_images.json").read_text("utf-8"))["images"]
    assert [one["image_id"] for one in images] == [1, 2] and "ROUGE-L" in images[0]["scores"]
    card = scores["protocol"]
    assert (card["results"], card["references"], card["split"]) == (str(hyp), str(refs), "dev")


def test_files_that_do_not_match_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    hyp, refs, out = (tmp_path / name for name in ("hyp.json", "refs.json", "scores.json"))
    write_results(hyp, {1: "a dog"})
    write_references(refs, REFERENCES)
    with pytest.raises(
        DataError, match=r"hyp\.json must caption the images of .*refs\.json: 1 of 2"
    ):
        score_files(results=hyp, references=refs, out=out)
    assert not out.exists()
    card = score_files(results=hyp, references=refs, subset=True).scores["protocol"]
    assert (card["images"], card["images_annotated"]) == (1, 2)


def test_a_person_against_the_others_is_the_mean_over_who_is_left_out() -> None:
    references: dict[ImageId, list[str]] = {
        1: ["a b c d", "a b c d", "x"],
        2: ["e f g h", "e f g h", "x"],
    }
    scores = human_scores(references, card={"split": "dev"})
    # Rounds one and two are perfect, in the third no word matches.
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx([200 / 3] * 4, abs=0.01)
    assert scores["protocol"]["references_per_image"]["max"] == 2
    assert scores["protocol"]["split"] == "dev" and "3 rounds" in scores["protocol"]["hypotheses"]


def test_rounds_follow_the_image_with_the_fewest_references() -> None:
    assert "2 rounds" in human_scores(REFERENCES)["protocol"]["hypotheses"]
    with pytest.raises(DataError, match=r"1 of 2 images have fewer \('y'\)"):
        human_scores({"x": ["a", "b"], "y": ["a"]})
    with pytest.raises(DataError, match="0 of 0"):
        human_scores({})


def test_the_look_of_captions() -> None:
    look = describe_captions(["A dog .", "a dog", "two cats play", ""])
    assert look == {
        "captions": 4,
        "distinct_share": 0.75,
        "commonest": "a dog",
        "commonest_share": 0.5,
        "empty_share": 0.25,
        "mean_length": 1.75,
        "words_used": 5,
        "lengths": {"0": 1, "2": 2, "3": 1},
    }
    assert describe_captions([])["mean_length"] == 0.0


def test_coco_captions_cider_has_both_names_and_every_metric_an_interval() -> None:
    scores = score(REFERENCES, HYPOTHESES, samples=50)
    assert scores["CIDEr"] == scores["CIDEr-D"] > 0
    assert scores["intervals"].keys() == {
        "BLEU-1",
        "BLEU-2",
        "BLEU-3",
        "BLEU-4",
        "ROUGE-L",
        "CIDEr-D",
        "CIDEr-unclipped",
    }
    assert "intervals" not in score(REFERENCES, HYPOTHESES, samples=0)


def test_old_papers_conventions() -> None:
    references, hypotheses = {1: ["A man's T-shirt, red & blue"]}, {1: "a man s t shirt"}
    old = score(references, hypotheses, protocol="neuraltalk")
    assert old["BLEU-4"] == pytest.approx(0, abs=0.1)  # a mans t shirt red blue
    assert old["BLEU-1"] == pytest.approx(60) and old["brevity_penalty"] == 1.0
    assert old["protocol"]["protocol"] == "neuraltalk"
    assert old["protocol"]["brevity_penalty"] == "off"
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        score(references, hypotheses, protocol="cocoo")
