from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captioner.data.formats.coco import load_coco
from captioner.errors import ConfigError, DataError


def content(*ids: int) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": key, "file_name": f"{key:012d}.jpg", "width": 4} for key in ids],
        "annotations": [
            {"id": 10 * key + number, "image_id": key, "caption": f"a dog runs {number}"}
            for key in ids
            for number in range(2)
        ],
    }


def write(folder: Path, name: str, value: Any) -> tuple[Path, Path]:
    path = folder / f"captions_{name}.json"
    path.write_text(json.dumps(value))
    root = folder / name
    root.mkdir(exist_ok=True)
    return path, root


def test_two_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, train_root = write(tmp_path, "train2017", content(7, 3))
    dev, dev_root = write(tmp_path, "val2017", content(5))
    (dev_root / "000000000005.jpg").touch()
    data = load_coco({"dev": dev, "train": train}, {"train": train_root, "dev": dev_root})
    assert list(data.splits) == ["train", "dev"]
    assert [image.image_id for image in data.splits["train"]] == [3, 7]
    (image,) = data.split("dev")
    assert image.path == dev_root / "000000000005.jpg"
    assert image.captions == ("a dog runs 0", "a dog runs 1")
    with pytest.raises(DataError, match="2 of 2 images are missing"):
        data.split("train")
    assert capsys.readouterr().out == ""


def test_an_image_without_captions_is_left_out_and_noted(tmp_path: Path) -> None:
    value = content(3, 4)
    value["annotations"] = value["annotations"][:2]
    path, root = write(tmp_path, "train", value)
    data = load_coco({"train": path}, {"train": root})
    assert [image.image_id for image in data.splits["train"]] == [3]
    assert any("left without a caption, the first: 000000000004.jpg" in note for note in data.notes)


def broken(**changes: Any) -> dict[str, Any]:
    return {**content(3), **changes}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r" must be an object with the keys annotations, images, found a list of 0"),
        (broken(annotations=[]), "expected COCO's captions, found no row in 'annotations'"),
        (
            broken(annotations=[{"id": 1, "image_id": 3, "bbox": []}]),
            r"annotations\[0\] lacks 'caption', found an object.*captions_\*\.json",
        ),
        (
            broken(images=[{"id": "3", "file_name": "a.jpg"}]),
            r"images\[0\]\.id must be a whole number, found '3'",
        ),
        (broken(images=[{"id": True, "file_name": "a.jpg"}]), r"images\[0\]\.id.*found True"),
        (
            broken(annotations=[{"id": 1, "image_id": 3, "caption": "a b\ud800"}]),
            r"line 1: \\ud800 is half of a surrogate pair",
        ),
        (broken(images=content(3, 3)["images"]), "the id 3 stands twice in 'images'"),
        (
            broken(annotations=[{"id": 1, "image_id": 9, "caption": "a b"}]),
            "1 annotations are of images not under 'images', the first: annotation 1",
        ),
    ],
)
def test_broken_files(tmp_path: Path, value: Any, message: str) -> None:
    path, root = write(tmp_path, "train", value)
    with pytest.raises(DataError, match=rf"captions_train\.json.*{message}"):
        load_coco({"train": path}, {"train": root})


def test_overlap_and_mismatched_splits(tmp_path: Path) -> None:
    path, root = write(tmp_path, "train", content(3))
    with pytest.raises(DataError, match="'train' and 'test' share 1 images"):
        load_coco({"train": path, "test": path}, {"train": root, "test": root})
    with pytest.raises(ConfigError, match="same splits in both"):
        load_coco({"train": path}, {"dev": root})
    with pytest.raises(ConfigError, match="val"):
        load_coco({"val": path}, {"val": root})
    with pytest.raises(DataError, match="no folder of images"):
        load_coco({"train": path}, {"train": tmp_path / "nowhere"})
