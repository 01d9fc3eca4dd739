"""The share of words whose attention falls on their object, of maps whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captioner.data.captions import CaptionData
from captioner.data.scenes.captions import Scene
from captioner.data.scenes.dataset import draw_scenes, load_scene_boxes, load_scene_truth
from captioner.data.tokenize import tokenize
from captioner.inference.attention import CaptionMaps, RegionGrid
from captioner.inspection.attention_on_objects import (
    attention_on_objects,
    concentration,
    more_than_chance,
    on_right_object,
)

SIDE = 10
GRID = RegionGrid(SIDE, SIDE)
SCENE = Scene("two", "small", "red", "ring", "left", "large", "blue", "square")
BOXES = ([(0.1, 0.1, 0.3, 0.3), (0.1, 0.6, 0.3, 0.8)], [(0.6, 0.4, 0.9, 0.7)])
EVERYTHING = [*BOXES[0], *BOXES[0], *BOXES[1]]
CAPTION = tokenize("to the left of a large blue square there are two small red rings")
GROUP, OTHER = CAPTION.index("rings"), CAPTION.index("square")


def cells(low: float, high: float) -> slice:
    return slice(round(SIDE * low), round(SIDE * high))


def on_boxes(boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Weights on the cells of the boxes alone, which end where cells do; once for each box."""
    weights = np.zeros((SIDE, SIDE))
    for left, top, right, bottom in boxes:
        rows, columns = (
            slice(round(SIDE * a), round(SIDE * b)) for a, b in ((top, bottom), (left, right))
        )
        weights[rows, columns] = 1
    return weights / weights.sum()


def maps_of(weights: dict[int, np.ndarray], words: list[str] = CAPTION) -> CaptionMaps:
    even = np.full((SIDE, SIDE), 1 / SIDE**2)
    return CaptionMaps(np.stack([weights.get(k, even) for k in range(len(words))]), None, GRID)


def test_concentration_is_the_share_inside_over_the_share_of_the_area() -> None:
    assert concentration(np.ones((SIDE, SIDE)), BOXES[0], GRID) == pytest.approx(1)
    assert concentration(on_boxes(BOXES[0]), BOXES[0], GRID) == pytest.approx(1 / 0.08)
    assert concentration(on_boxes(BOXES[1]), BOXES[0], GRID) == pytest.approx(0)
    # A cell of which the box covers a quarter, of all that lies in the box.
    weights = np.zeros((SIDE, SIDE))
    weights[0, 0] = 1
    assert concentration(weights, [(0, 0, 0.05, 0.05)], GRID) == pytest.approx(0.25 / 0.0025)
    assert concentration(np.zeros((SIDE, SIDE)), BOXES[0], GRID) == 0


def test_a_box_is_moved_into_what_the_encoder_sees() -> None:
    crop = RegionGrid(SIDE, SIDE, 0.5)  # from a quarter to three quarters
    half = np.zeros((SIDE, SIDE))
    half[:, :5] = 1
    assert concentration(half, [(0.25, 0.25, 0.5, 0.75)], crop) == pytest.approx(2)
    assert concentration(half, [(0.0, 0.0, 0.5, 1.0)], crop) == pytest.approx(2)
    assert concentration(half, [(0.8, 0.8, 0.9, 0.9)], crop) == 0


@pytest.mark.parametrize(
    ("group", "other", "chance", "right"),
    [
        (BOXES[0], BOXES[1], 1.0, 1.0),  # each word on its own object
        (BOXES[1], BOXES[0], 0.0, 0.0),  # each on the other one
        (EVERYTHING, EVERYTHING, 1.0, 0.5),  # each on both, and more on the group
        (BOXES[0], BOXES[0], 0.5, 0.5),
    ],
)
def test_the_shares_of_maps_that_are_known(
    group: list[tuple[float, float, float, float]],
    other: list[tuple[float, float, float, float]],
    chance: float,
    right: float,
) -> None:
    weights = {place: on_boxes(group) for place in range(GROUP - 2, GROUP + 1)}
    weights |= {place: on_boxes(other) for place in range(OTHER - 2, OTHER + 1)}
    found = attention_on_objects({"x": (CAPTION, maps_of(weights))}, {"x": SCENE}, {"x": BOXES})
    assert [one.slot for one in found] == ["size", "colour", "shape"] * 2
    assert more_than_chance(found) == chance and on_right_object(found) == right


def test_even_attention_is_not_more_than_chance_and_words_without_an_object_do_not_count() -> None:
    even = {"x": (CAPTION, maps_of({}))}
    found = attention_on_objects(even, {"x": SCENE}, {"x": BOXES})
    assert [one.own for one in found] == pytest.approx([1.0] * 6)
    unclear = tokenize("a large green ring")  # as large as the square, and a ring like the others
    maps = maps_of({}, unclear)
    assert not attention_on_objects({"x": (unclear, maps)}, {"x": SCENE}, {"x": BOXES})
    assert more_than_chance([]) == on_right_object([]) == 0


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return draw_scenes(
        tmp_path_factory.mktemp("scenes"), train=20, dev=20, test=20, size=64, seed=3
    )


def test_maps_of_the_pixels_that_differ_fall_on_the_objects_of_drawn_scenes(
    drawn: CaptionData,
) -> None:
    """Attention made of the image itself: all that is no background, in cells of 4 x 4 pixels."""
    images = drawn.split("dev")
    folder: Path = images[0].path.parent
    captions = {}
    for image in images:
        words = image.captions[0].split()
        weights = objects(image.path).reshape(16, 4, 16, 4).mean((1, 3))
        maps = CaptionMaps(np.stack([weights] * len(words)), None, RegionGrid(16, 16))
        captions[image.name] = (words, maps)
    found = attention_on_objects(captions, load_scene_truth(folder), load_scene_boxes(folder))
    assert len(found) == 6 * len(images)
    assert more_than_chance(found) == 1.0
    assert 0.2 < on_right_object(found) < 0.8


def objects(path: Path) -> np.ndarray:
    """1 where an image's pixels are no background."""
    from PIL import Image

    pixels = np.asarray(Image.open(path)).astype(int)
    return (np.abs(pixels - np.median(pixels, (0, 1))).max(2) > 25).astype(float)
