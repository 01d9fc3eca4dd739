from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from PIL import Image
from script_runner import Scripts

from captioner.data.captions import CaptionData
from captioner.data.scenes import drawing as scene_drawing
from captioner.data.scenes.captions import (
    OPPOSITE,
    SLOTS,
    Scene,
    caption_scene,
    likeliest_caption,
    object_words,
    parse_caption,
    turned_round,
)
from captioner.data.scenes.dataset import (
    all_scenes,
    draw_scenes,
    load_scene_boxes,
    load_scene_truth,
)
from captioner.data.tokenize import tokenize
from captioner.errors import ConfigError, DataError

COUNTS = {"one": 1, "two": 2}


def some_scenes(number: int) -> list[Scene]:
    chosen = np.random.default_rng(5).permutation(len(all_scenes()))[:number]
    return [all_scenes()[k] for k in chosen]


def pixels(data: CaptionData) -> dict[str, bytes]:
    return {item.name: item.path.read_bytes() for items in data.splits.values() for item in items}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return draw_scenes(tmp_path_factory.mktemp("scenes"), train=200, dev=30, test=50, seed=3)


def test_no_two_scenes_look_the_same() -> None:
    seen = set()
    for scene in all_scenes():
        tellings = [tuple(scene.slots().values())]
        if scene.count == "one":
            tellings.append(tuple(turned_round(scene.slots())[slot] for slot in SLOTS))
        seen.add(min(tellings))
    assert len(seen) == len(all_scenes()) == 23_808


def test_splits_have_the_sizes_asked_for_and_share_no_scene(drawn: CaptionData) -> None:
    truth = load_scene_truth(drawn.split("test")[0].path.parent)
    assert {name: len(drawn.split(name)) for name in drawn.splits} == {
        "train": 200,
        "dev": 30,
        "test": 50,
    }
    scenes = {name: {truth[i.name] for i in drawn.split(name)} for name in drawn.splits}
    for first, second in itertools.combinations(scenes, 2):
        assert not scenes[first] & scenes[second]


def test_every_value_of_every_slot_occurs(drawn: CaptionData) -> None:
    truth = load_scene_truth(drawn.split("train")[0].path.parent)
    for slot in SLOTS:
        every = {getattr(scene, slot) for scene in all_scenes()}
        assert {getattr(scene, slot) for scene in truth.values()} == every


def test_captions_are_five_distinct_and_true(drawn: CaptionData) -> None:
    truth = load_scene_truth(drawn.split("test")[0].path.parent)
    for item in itertools.chain(*drawn.splits.values()):
        assert len(set(item.captions)) == len(item.captions) == 5
        scene = truth[item.name].slots()
        for caption in item.captions:
            said = parse_caption(caption)
            tellings = [scene, turned_round(scene)] if scene["count"] == "one" else [scene]
            assert said in tellings, caption


def test_images_are_readable_rgb_of_the_size(drawn: CaptionData, tmp_path: Path) -> None:
    with Image.open(drawn.split("test")[0].path) as image:
        assert image.size == (64, 64) and image.mode == "RGB"
    larger = draw_scenes(tmp_path, train=1, dev=0, test=0, size=96)
    with Image.open(larger.split("train")[0].path) as image:
        assert image.size == (96, 96)


def test_the_same_seed_draws_the_same_and_another_does_not(
    drawn: CaptionData, tmp_path: Path
) -> None:
    again = draw_scenes(tmp_path, train=200, dev=30, test=50, seed=3)
    assert pixels(again) == pixels(drawn)
    captions = {i.name: i.captions for i in itertools.chain(*drawn.splits.values())}
    assert {i.name: i.captions for i in itertools.chain(*again.splits.values())} == captions
    other = draw_scenes(tmp_path, train=200, dev=30, test=50, seed=4)
    assert not set(pixels(other).values()) & set(pixels(drawn).values())


def test_more_training_images_leave_dev_and_test_alone(drawn: CaptionData, tmp_path: Path) -> None:
    more = draw_scenes(tmp_path, train=210, dev=30, test=50, seed=3)
    for split in ("dev", "test"):
        for old, new in zip(drawn.split(split), more.split(split), strict=True):
            assert (old.captions, old.path.read_bytes()) == (new.captions, new.path.read_bytes())


def test_an_interrupted_drawing_is_completed_and_the_rest_kept(tmp_path: Path) -> None:
    parameters = {"train": 12, "dev": 3, "test": 3}
    first = draw_scenes(tmp_path, **parameters)
    whole = pixels(first)
    folder = first.split("train")[0].path.parent
    kept = folder / "train-00005.png"
    before = kept.stat().st_mtime_ns
    (folder / "train-00004.png").unlink()
    (folder / "test-00000.png").write_bytes(b"")
    (folder / "scenes.json").unlink()
    assert pixels(draw_scenes(tmp_path, **parameters)) == whole
    assert kept.stat().st_mtime_ns == before
    assert len(load_scene_truth(folder)) == 18
    assert sorted(path.name for path in folder.iterdir()) == sorted([*whole, "scenes.json"])


def test_two_processes_may_draw_at_once(tmp_path: Path, scripts: Scripts) -> None:
    program = tmp_path / "draw.py"
    program.write_text(
        "import sys; from captioner.data.scenes.dataset import draw_scenes; "
        "draw_scenes(sys.argv[1], train=60, dev=0, test=0)"
    )
    workers = [scripts.start(tmp_path, program, [str(tmp_path / "both")]) for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    both = draw_scenes(tmp_path / "both", train=60, dev=0, test=0)
    assert pixels(both) == pixels(draw_scenes(tmp_path / "alone", train=60, dev=0, test=0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": -1}, "train"),
        ({"train": 23_808}, "23808 different scenes"),
        ({"size": 16}, "at least 32"),
        ({"seed": -2}, "seed"),
    ],
)
def test_impossible_parameters_are_named(
    changed: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_scenes(tmp_path, **{"train": 1, "dev": 1, "test": 1, **changed})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="file"):
        draw_scenes(tmp_path / "file", train=1, dev=0, test=0)


@pytest.mark.parametrize("content", ["[]", '{"scenes": {"a.png": {"count": "one"}}}', "{"])
def test_a_truth_file_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "scenes.json").write_text(content)
    with pytest.raises(DataError, match=r"scenes\.json"):
        load_scene_truth(tmp_path)
    with pytest.raises(DataError, match=r"scenes\.json"):
        load_scene_truth(tmp_path / "absent")


def test_objects_keep_apart_inside_the_image_and_in_their_relation() -> None:
    generator = np.random.default_rng(0)
    for scene in some_scenes(3000):
        group, other = scene_drawing.place_objects(scene, generator)
        assert len(group) == COUNTS[scene.count]
        reach = [scene_drawing.RADIUS[scene.size][1]] * len(group)
        reach.append(scene_drawing.RADIUS[scene.size2][1])
        objects = [(*centre, r) for centre, r in zip([*group, other], reach, strict=True)]
        for x, y, r in objects:
            assert r <= x <= 1 - r and r <= y <= 1 - r
        for (x, y, r), (x2, y2, r2) in itertools.combinations(objects, 2):
            assert np.hypot(x - x2, y - y2) > r + r2
        for x, y in group:
            right, down = x - other[0], y - other[1]
            clear = {"left": -right, "right": right, "above": -down, "below": down}
            assert clear[scene.relation] > max(reach[0], reach[-1])


def test_an_object_has_its_colour_and_size_in_the_image() -> None:
    areas = {}
    for size in ("small", "large"):
        scene = Scene("two", size, "red", "triangle", "left", "small", "blue", "ring")
        image = scene_drawing.draw_scene(scene, np.random.default_rng(1), size=64)
        rgb = np.asarray(image).astype(int)
        red = (rgb[..., 0] > 180) & (rgb[..., 1] < 90)
        blue = (rgb[..., 2] > 180) & (rgb[..., 0] < 90)
        assert np.nonzero(red)[1].max() < np.nonzero(blue)[1].min()
        assert rgb[0].mean() > 200
        areas[size] = red.sum()
    assert areas["large"] > 2 * areas["small"] > 30


def test_a_describer_of_one_template_scores_high_on_bleu() -> None:
    generator = np.random.default_rng(2)
    scenes = some_scenes(500)
    references = [[tokenize(text) for text in caption_scene(s, generator)] for s in scenes]
    hypotheses = [tokenize(likeliest_caption(scene)) for scene in scenes]
    assert corpus_bleu(references, hypotheses) > 0.85
    # What it must not do: score as high without looking.
    assert corpus_bleu(references, hypotheses[1:] + hypotheses[:1]) < 0.4


def test_the_grammar_is_small() -> None:
    generator = np.random.default_rng(2)
    captions = [tokenize(t) for s in some_scenes(800) for t in caption_scene(s, generator)]
    assert len({word for caption in captions for word in caption}) == 38
    assert max(map(len, captions)) == 14


TWO_LEFT = Scene("two", "small", "red", "ring", "left", "large", "blue", "square").slots()


@pytest.mark.parametrize(
    "caption",
    [
        "Two little red rings are left of a big blue square.",
        "there is a large blue square with two small red rings to its left",
        "to the left of a large blue square there are two small red rings",
        "a large blue square is to the right of two small red rings",
        "two small red rings on the left and a large blue square",
    ],
)
def test_every_word_order_is_read(caption: str) -> None:
    assert parse_caption(caption) == TWO_LEFT


def test_single_objects_are_read_as_they_are_told() -> None:
    told = parse_caption("a small red bar is over an orange triangle")
    assert told == {
        "count": "one", "size": "small", "colour": "red", "shape": "bar",
        "relation": "above", "colour2": "orange", "shape2": "triangle",
    }  # fmt: skip
    again = parse_caption("one orange triangle below a small red bar")
    assert again == turned_round(told)


@pytest.mark.parametrize(
    ("caption", "absent"),
    [
        ("two red rings left of a large blue square", {"size"}),
        ("two small red blue rings left of a large blue square", {"colour"}),
        ("two small red rings and a large blue square", {"relation"}),
        ("two small red rings left of above a large blue square", {"relation"}),
        ("small red rings left of a large blue square", {"count"}),
        ("two small red rings left of", {"size2", "colour2", "shape2"}),
        ("two small red rings left of two large blue squares", {"count"}),
        ("left of a large blue square", {"count", "size", "colour", "shape"}),
        ("two small red rings left of a large blue square and a triangle", set(SLOTS)),
        ("a dog jumps", set(SLOTS)),
        ("", set(SLOTS)),
    ],
)
def test_a_missing_or_contradictory_slot_is_absent(caption: str, absent: set[str]) -> None:
    expected = {slot: value for slot, value in TWO_LEFT.items() if slot not in absent}
    assert parse_caption(caption) == expected


def test_turning_round_twice_changes_nothing() -> None:
    for scene in some_scenes(50):
        turned = turned_round(scene.slots())
        assert turned["relation"] == OPPOSITE[scene.relation]
        assert turned_round(turned) == scene.slots()


def test_boxes_hold_the_objects_and_nothing_else(drawn: CaptionData) -> None:
    boxes = load_scene_boxes(drawn.split("test")[0].path.parent)
    truth = load_scene_truth(drawn.split("test")[0].path.parent)
    assert list(boxes) == list(truth)
    for item in itertools.chain(*drawn.splits.values()):
        group, other = boxes[item.name]
        assert len(group) == COUNTS[truth[item.name].count] and len(other) == 1
        with Image.open(item.path) as image:
            colours = np.asarray(image).astype(int)
        object_pixels = np.abs(colours - np.median(colours, (0, 1))).max(2) > 25
        outside = object_pixels.copy()
        for left, top, right, bottom in [*group, *other]:
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            edges = [round(64 * edge) for edge in (left, top, right, bottom)]
            inside = object_pixels[edges[1] : edges[3], edges[0] : edges[2]]
            rows, columns = (inside.any(axis) for axis in (1, 0))
            # Tight to a pixel on each edge, the pointed ones of triangles to two.
            assert rows[:3].any() and rows[-2:].any() and columns[:3].any() and columns[-3:].any()
            outside[edges[1] - 1 : edges[3] + 1, edges[0] - 1 : edges[2] + 1] = False
        assert not outside.any(), item.name


def test_boxes_need_the_seed(tmp_path: Path) -> None:
    (tmp_path / "scenes.json").write_text('{"scenes": {}}')
    with pytest.raises(DataError, match="lacks 'parameters'"):
        load_scene_boxes(tmp_path)


def test_words_that_describe_objects_are_found_with_what_they_state() -> None:
    words = tokenize("Below a little pink ring there are two red squares")
    assert object_words(words) == [
        (2, 0, "size", "small"),
        (3, 0, "colour", "pink"),
        (4, 0, "shape", "ring"),
        (8, 1, "colour", "red"),
        (9, 1, "shape", "square"),
    ]
