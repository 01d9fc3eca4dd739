"""Whether a captioner of drawn scenes looks at the object that it describes; a scene knows where
its objects are.

Each word that states the size, colour or shape of an object is asked two questions. Does more of
its attention lie on the object's box than even attention would put there? Attention that prefers
any object to the background passes this as well, so: does the object have more of it, for its area,
than the scene's other object? There chance is a half.

Letters: h w the grid's sides.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from captioner.data.scenes.captions import Scene, object_words
from captioner.data.scenes.drawing import Box
from captioner.evaluation.attention import seen_area
from captioner.inference.attention import CaptionMaps, RegionGrid

# Of a scene: the boxes of the group and of the other object.
SceneBoxes = tuple[Sequence[Box], Sequence[Box]]


@dataclass(frozen=True)
class WordAttention:
    """A word that states a slot of an object: the `concentration` of its attention on that object
    (`own`) and on the scene's other one."""

    slot: str
    own: float
    other: float


def attention_on_objects(
    captions: Mapping[str, tuple[Sequence[str], CaptionMaps]],
    truth: Mapping[str, Scene],
    boxes: Mapping[str, SceneBoxes],
) -> list[WordAttention]:
    """Each such word of captions (words and maps) by image name, whose scenes and boxes are given.

    That object of the scene is meant which agrees more in size, colour and shape with what the
    caption says of it; where both agree alike the words are left out.
    """
    found = []
    for name, (words, maps) in captions.items():
        for place, slot, meant in _meant(words, truth[name]):
            own, other = (
                concentration(maps.weights[place], boxes[name][which], maps.grid)
                for which in (meant, 1 - meant)
            )
            found.append(WordAttention(slot, own, other))
    return found


def more_than_chance(words: Sequence[WordAttention]) -> float:
    """The share of words with more attention on their object than even attention has; 0 of none."""
    return float(np.mean([one.own > 1 for one in words] or [False]))


def on_right_object(words: Sequence[WordAttention]) -> float:
    """The share of words with more attention for its area on their object than on the other."""
    return float(np.mean([one.own > one.other for one in words] or [False]))


def concentration(weights: np.ndarray, boxes: Iterable[Box], grid: RegionGrid) -> float:
    """The share of weights [h, w] inside boxes that do not overlap (in units of a square image's
    side), over their share of the area that the encoder sees: 1 for even attention."""
    left, top, right, bottom = seen_area(1, 1, grid.crop)
    inside, area = 0.0, 0.0
    for low_x, low_y, high_x, high_y in boxes:
        x = _covered(low_x, high_x, within=(left, right), cells=grid.columns)
        y = _covered(low_y, high_y, within=(top, bottom), cells=grid.rows)
        inside += float(y @ weights @ x)
        area += float(y.mean() * x.mean())
    total = float(weights.sum())
    return inside / total / area if total > 0 and area > 0 else 0.0


def _covered(low: float, high: float, *, within: tuple[float, float], cells: int) -> np.ndarray:
    """How much of each of the `cells` equal parts of `within` lies between `low` and `high`."""
    edges = np.linspace(*within, cells + 1)
    return np.diff(np.clip(edges, low, high)) / np.diff(edges)


def _meant(words: Sequence[str], scene: Scene) -> Iterator[tuple[int, str, int]]:
    """The place of each word that describes an object, the slot that it states, and which object of
    the scene is meant: 0 the group, 1 the other."""
    stated = object_words(words)
    slots = scene.slots()
    other = {slot.removesuffix("2"): value for slot, value in slots.items() if slot[-1] == "2"}
    for place, number, slot, _ in stated:
        said = [(of, value) for _, one, of, value in stated if one == number]
        agreeing = [sum(own[of] == value for of, value in said) for own in (slots, other)]
        if agreeing[0] != agreeing[1]:
            yield place, slot, int(agreeing[1] > agreeing[0])
