"""Baselines, warnings, and images that are in two splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.errors import DataError
from captioner.evaluation.baselines import (
    constant_captions,
    copied_share,
    most_typical,
    nearest_captions,
    shuffled_captions,
)
from captioner.evaluation.coco_format import ImageId
from captioner.evaluation.leakage import Leakage, find_leakage
from captioner.evaluation.metrics import measure
from captioner.evaluation.sanity import TrainingSet, check_sanity, describe_captions

WORDS = "dog cat man girl bird horse boat car tree ball house lake".split()  # noqa: SIM905
REFERENCES = {
    n: [
        f"a {word} is near the water",
        f"one {word} stands there alone today",
        f"the {word} is here right now",
    ]
    for n, word in enumerate(WORDS)
}
GOOD = {n: f"a {word} is near the water" for n, word in enumerate(WORDS)}


def sanity(hypotheses: Mapping[ImageId, str], training: TrainingSet | None = None) -> dict:  # type: ignore[type-arg]
    def scorer(captions: Mapping[ImageId, str]) -> dict[str, float]:
        found = measure(list(REFERENCES.values()), [captions[n] for n in REFERENCES])
        return {name: metric.value for name, metric in found.metrics.items()}

    scores = {**scorer(hypotheses), "captions": describe_captions(list(hypotheses.values()))}
    human = dict.fromkeys(scores, 100.0)
    return check_sanity(
        REFERENCES, hypotheses, scores, scorer=scorer, human=lambda: human, training=training
    )


def test_good_captions_raise_no_alarm_but_one_for_being_too_good() -> None:
    found = sanity(GOOD)
    assert found["rows"]["shuffled images"]["CIDEr-D"] < 100
    assert all("far above a human" in warning for warning in found["warnings"])
    assert found["missing"].keys() == {"constant caption", "nearest neighbour"}


@pytest.mark.parametrize(
    ("hypotheses", "words"),
    [
        (dict.fromkeys(GOOD, "a dog is near the water"), "hardly depend on the image"),
        (dict.fromkeys(GOOD, "a dog is near the water"), "100% of the images get the caption"),
        (dict.fromkeys(GOOD, "a dog is near the water"), "only 8% of the captions are different"),
        ({**GOOD, 0: ""}, "8.3% of the captions are empty"),
        ({n: text[:5] for n, text in GOOD.items()}, "words on average"),
    ],
)
def test_what_looks_wrong_is_said(hypotheses: dict[ImageId, str], words: str) -> None:
    assert any(words in warning for warning in sanity(hypotheses)["warnings"])


def test_the_training_set_is_looked_at() -> None:
    eye = np.eye(12, dtype=np.float32)
    training = TrainingSet(
        captions=[[text] for text in GOOD.values()],
        training_features=eye,
        features=eye,
        vocabulary=100,
        leakage=Leakage((("a.jpg", "b.jpg"),), ()),
    )
    found = sanity(GOOD, training)
    assert found["figures"]["copied_share"] == 1.0
    assert found["figures"]["vocabulary_used_share"] == 0.17  # 12 nouns, a, is, near, the, water
    text = " ".join(found["warnings"])
    assert "does not beat the nearest neighbour" in text and "word for word" in text
    assert "1 images of the split are in the training set too" in text


def test_each_image_gets_anothers_caption() -> None:
    for seed in range(20):
        moved = shuffled_captions(GOOD, seed=seed)
        assert sorted(moved.values()) == sorted(GOOD.values())
        assert all(moved[n] != GOOD[n] for n in GOOD)


def test_the_constant_caption_is_the_commonest() -> None:
    assert constant_captions([1, 2], ["a dog .", "A dog", "a cat"]) == {1: "a dog", 2: "a dog"}
    with pytest.raises(DataError, match="there are none"):
        constant_captions([1], [])


def test_neighbours_are_near_and_their_caption_typical() -> None:
    known = np.array([[0, 1], [1, 0], [-1, -1]], np.float32)
    captions = [["up", "up above"], ["right"], ["a", "down there", "a way down there"]]
    found = nearest_captions(
        ["x", "y"], np.array([[0.1, 2], [-3, -2]], np.float32), known, captions
    )
    assert found["x"] in captions[0] and found["y"] in captions[2]
    assert most_typical(["a b", "a b c", "x y z"]) == "a b"
    with pytest.raises(DataError, match="got 1 for 2"):
        nearest_captions(["x", "y"], known[:1], known, captions)


def test_copies_are_counted_on_words() -> None:
    assert copied_share(["A dog.", "a cat"], ["a dog"]) == 0.5
    assert copied_share([], ["a"]) == 0


def test_the_same_image_is_found_by_file_and_by_look(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    files = []
    for number in range(6):
        rough = Image.fromarray(draw.integers(0, 255, (9, 9, 3), np.uint8))
        rough.resize((200, 160), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    smaller = tmp_path / "smaller.jpg"
    with Image.open(files[1]) as image:
        image.resize((120, 100)).save(smaller, quality=80)
    found = find_leakage([copy, smaller, files[2]], [files[0], files[1], *files[3:]])
    assert found.same_file == (("copy.png", "0.png"),)
    assert found.same_look == (("smaller.jpg", "1.png"),)
