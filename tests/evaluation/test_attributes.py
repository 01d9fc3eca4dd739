from __future__ import annotations

import numpy as np
import pytest

from captioner.data.scenes.captions import SLOTS, Scene, caption_scene
from captioner.data.scenes.dataset import all_scenes
from captioner.errors import DataError
from captioner.evaluation.attributes import attribute_accuracy

GROUP = Scene("two", "small", "red", "ring", "left", "large", "blue", "square")
SINGLE = Scene("one", "small", "red", "ring", "left", "large", "blue", "square")


def test_true_captions_of_any_template_score_one() -> None:
    generator = np.random.default_rng(0)
    scenes = [all_scenes()[k] for k in range(0, len(all_scenes()), 311)]
    for caption in range(5):
        told = {k: caption_scene(scene, generator)[caption] for k, scene in enumerate(scenes)}
        result = attribute_accuracy(dict(enumerate(scenes)), told)
        assert result == dict.fromkeys(("accuracy", "all_slots", *SLOTS), 1.0)


def test_wrong_and_missing_slots_are_counted_each_in_its_slot() -> None:
    truth = {"a": GROUP, "b": GROUP, "unasked": SINGLE}
    result = attribute_accuracy(
        truth,
        {
            "a": "two small red rings to the left of a large blue square",
            "b": "three small red rings to the left of a blue square",
        },
    )
    wrong = {"count", "size2"}
    assert {slot: result[slot] for slot in SLOTS} == {
        slot: 0.5 if slot in wrong else 1.0 for slot in SLOTS
    }
    assert result["accuracy"] == 14 / 16
    assert result["all_slots"] == 0.5


@pytest.mark.parametrize(
    ("scene", "caption", "right"),
    [
        (SINGLE, "a large blue square is to the right of a small red ring", 8),
        (SINGLE, "a large blue square is to the left of a small red ring", 7),
        # The count alone is wrong, told from the other object.
        (GROUP, "a large blue square is to the right of a small red ring", 7),
        (SINGLE, "two large blue squares right of a small red ring", 7),
        # With a group the two objects cannot change places.
        (GROUP, "two large blue squares are to the right of a small red ring", 1),
        (SINGLE, "a dog", 0),
    ],
)
def test_single_objects_may_be_told_from_either(scene: Scene, caption: str, right: int) -> None:
    assert attribute_accuracy({0: scene}, {0: caption})["accuracy"] == right / 8


def test_unknown_images_and_no_captions_are_errors() -> None:
    with pytest.raises(DataError, match="'b'"):
        attribute_accuracy({"a": GROUP}, {"b": "two rings"})
    with pytest.raises(DataError, match="no captions"):
        attribute_accuracy({"a": GROUP}, {})
