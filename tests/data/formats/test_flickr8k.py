from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from captioner.data.formats.flickr8k import STRAY_KEY, load_flickr8k
from captioner.errors import ConfigError, DataError

SHARED = Path(
    os.environ.get("CAPTIONER_FLICKR8K", Path(__file__).parents[4] / "shared" / "flickr8k")
)
SPLITS = {"train": [f"{key}.jpg" for key in "abcdef"], "dev": ["g.jpg"], "test": ["h.jpg"]}
NAMES = [name for names in SPLITS.values() for name in names]


def write_images(root: Path, folder: str = "Flicker8k_Dataset", names: list[str] = NAMES) -> None:
    (root / folder).mkdir(parents=True)
    for name in names:
        (root / folder / name).touch()


def token_file(root: Path, *more: str) -> Path:
    lines = [f"{name}#{k}\tA dog runs {k} ." for name in NAMES for k in range(2)]
    path = root / "Flickr8k.token.txt"
    path.write_text("\n".join([*lines, *more, ""]))
    return path


def lists(root: Path, splits: dict[str, list[str]] = SPLITS) -> None:
    for split, names in splits.items():
        (root / f"Flickr_8k.{split}Images.txt").write_text("\n".join([*names, ""]))


def kaggle(root: Path) -> None:
    with (root / "captions.txt").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows([name, f'A "dog", {k} runs'] for name in NAMES for k in range(2))


def karpathy(root: Path) -> None:
    images = [
        {
            "filename": name,
            "split": "val" if split == "dev" else split,
            "sentences": [{"raw": f"A dog runs {k} ."} for k in range(2)],
        }
        for split, names in SPLITS.items()
        for name in names
    ]
    text = json.dumps({"dataset": "flickr8k", "images": images})
    (root / "dataset_flickr8k.json").write_text(text)


def test_the_official_layout_with_its_quirks(tmp_path: Path) -> None:
    write_images(tmp_path)
    token_file(tmp_path, f"{STRAY_KEY}#0\tA stray dog .", "z.jpg#0\ta", "z.jpg#1\ta cat")
    lists(tmp_path)
    data = load_flickr8k(tmp_path)
    assert data.name == "flickr8k, official layout"
    assert {split: [image.name for image in data.split(split)] for split in SPLITS} == SPLITS
    assert data.split("dev")[0].captions == ("A dog runs 0 .", "A dog runs 1 .")
    assert data.split("dev")[0].image_id == "g.jpg"
    notes = "\n".join(data.notes)
    assert f"stray key {STRAY_KEY}" in notes
    assert "left out 1 images in no split, the first: z.jpg; 1 of their captions" in notes


def test_karpathy_agrees_with_official_which_is_preferred(tmp_path: Path) -> None:
    write_images(tmp_path)
    token_file(tmp_path)
    lists(tmp_path)
    karpathy(tmp_path)
    official, other = load_flickr8k(tmp_path), load_flickr8k(tmp_path, layout="karpathy")
    assert official.name == "flickr8k, official layout"
    assert "also there and not read: dataset_flickr8k.json" in official.notes
    assert other.name == "flickr8k, karpathy layout"
    assert official.splits == other.splits


def test_kaggle_draws_a_split_and_says_so(tmp_path: Path) -> None:
    write_images(tmp_path, "Images")
    kaggle(tmp_path)
    data = load_flickr8k(tmp_path)
    assert data.name == "flickr8k, kaggle layout"
    assert [len(data.split(split)) for split in SPLITS] == [6, 1, 1]
    assert data.split("dev")[0].captions[1] == 'A "dog", 1 runs'
    assert any("drawn with seed 0" in note and "do not compare" in note for note in data.notes)
    others = [load_flickr8k(tmp_path, seed=seed).splits for seed in (1, 2, 3)]
    assert any(splits != data.splits for splits in others)


def test_kaggle_takes_official_lists_that_lie_beside(tmp_path: Path) -> None:
    write_images(tmp_path, "Images")
    kaggle(tmp_path)
    lists(tmp_path)
    data = load_flickr8k(tmp_path)
    assert {split: [image.name for image in data.split(split)] for split in SPLITS} == SPLITS


@pytest.mark.parametrize(
    "folder",
    ["Flickr8k_Dataset", "images", "deep/Images", "Flickr8k_Dataset/Flicker8k_Dataset"],
)
def test_where_the_images_may_lie(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path, folder)
    (tmp_path / "text").mkdir()
    token_file(tmp_path / "text")
    lists(tmp_path / "text")
    assert load_flickr8k(tmp_path).split("dev")[0].path == tmp_path / folder / "g.jpg"


def test_a_split_kept_aside_fails_only_when_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path, names=NAMES[:-1])
    token_file(tmp_path)
    lists(tmp_path)
    data = load_flickr8k(tmp_path)
    assert len(data.split("train")) == 6
    with pytest.raises(DataError, match=r"'test'.*1 of 1 images are missing, the first: .*h\.jpg"):
        data.split("test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x.jpg#0 A dog .", r"line 17: expected name#k<TAB>caption, found 'x\.jpg#0 A dog \.'"),
        ("x.jpg\tA dog .", "line 17: expected name#k"),
        ("x.jpg#one\tA dog .", "line 17: expected name#k"),
        ("a.jpg#1\tA cat .", "line 17: the key a.jpg#1 stands on line 2 too"),
    ],
)
def test_broken_token_lines(tmp_path: Path, line: str, message: str) -> None:
    write_images(tmp_path)
    lists(tmp_path)
    token_file(tmp_path, line)
    with pytest.raises(DataError, match=rf"Flickr8k\.token\.txt, {message}"):
        load_flickr8k(tmp_path)


def test_broken_lists(tmp_path: Path) -> None:
    write_images(tmp_path)
    token_file(tmp_path)
    lists(tmp_path, {**SPLITS, "test": ["x.jpg", "y.jpg"]})
    with pytest.raises(DataError, match=r"testImages\.txt names 2 images without.*x\.jpg"):
        load_flickr8k(tmp_path)
    lists(tmp_path, {**SPLITS, "test": ["a.jpg", "h.jpg"]})
    with pytest.raises(DataError, match=r"'train' and 'test' share 1 images, the first: a\.jpg"):
        load_flickr8k(tmp_path)
    lists(tmp_path, {**SPLITS, "dev": ["g.jpg", "g.jpg"]})
    with pytest.raises(DataError, match=r"devImages\.txt, line 2: g\.jpg stands on line 1 too"):
        load_flickr8k(tmp_path)
    lists(tmp_path, {**SPLITS, "dev": []})
    with pytest.raises(DataError, match=r"'dev' .* is empty; splits with images: train, test"):
        load_flickr8k(tmp_path).split("dev")
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    with pytest.raises(DataError, match=r"split list Flickr_8k\.testImages\.txt is missing"):
        load_flickr8k(tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no captions of Flickr8k.*Flickr8k\.token\.txt or data"):
        load_flickr8k(tmp_path / "nowhere")
    token_file(tmp_path)
    with pytest.raises(DataError, match=r"no images of Flickr8k.*Flicker8k_Dataset or Flickr8k"):
        load_flickr8k(tmp_path)
    with pytest.raises(DataError, match=r"expected captions\.txt"):
        load_flickr8k(tmp_path, layout="kaggle")
    with pytest.raises(ConfigError, match="no layout 'kagle'; expected auto, official"):
        load_flickr8k(tmp_path, layout="kagle")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no Flickr8k in {SHARED}")
def test_the_real_thing_is_the_same_in_both_layouts() -> None:
    official = load_flickr8k(SHARED, layout="official")
    other = load_flickr8k(SHARED, layout="karpathy")
    assert [len(images) for images in official.splits.values()] == [6000, 1000, 1000]
    for split, images in official.splits.items():
        assert set(images) == set(other.splits[split])
    assert any("left out 91 images" in note for note in official.notes)
    assert len(official.split("dev")) == 1000
