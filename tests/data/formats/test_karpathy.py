from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captioner.data.formats.karpathy import load_karpathy
from captioner.errors import DataError


def entry(filename: str, split: str, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": f"a dog runs {number}", "tokens": ["dog"]} for number in range(2)]
    return {"filename": filename, "split": split, "sentences": sentences, **more}


def coco_entry(number: int, split: str) -> dict[str, Any]:
    name = f"COCO_val2014_{number:012d}.jpg"
    return entry(name, split, filepath="val2014", cocoid=number)


def write(folder: Path, *entries: Any, dataset: str = "flickr30k") -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"dataset": dataset, "images": list(entries)}))
    return path


def test_flickr30k(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    path = write(tmp_path, entry("b.jpg", "val"), entry("a.jpg", "train"), entry("c.jpg", "test"))
    data = load_karpathy(path, tmp_path)
    assert list(data.splits) == ["train", "dev", "test"]
    (image,) = data.split("dev")
    assert image.image_id == image.name == "b.jpg"
    assert image.captions == ("a dog runs 0", "a dog runs 1")
    assert data.name == "flickr30k, Karpathy layout"
    with pytest.raises(DataError, match=r"1 of 1 images are missing, the first: .*c\.jpg"):
        data.split("test")


def test_coco_has_integer_ids_folders_and_restval(tmp_path: Path) -> None:
    entries = [coco_entry(3, "train"), coco_entry(4, "restval"), coco_entry(5, "val")]
    path = write(tmp_path, *entries, dataset="coco")
    data = load_karpathy(path, tmp_path)
    assert [image.image_id for image in data.splits["train"]] == [3]
    assert data.splits["dev"][0].path == tmp_path / "val2014/COCO_val2014_000000000005.jpg"
    assert any("1 images of restval left out" in note for note in data.notes)
    joined = load_karpathy(path, tmp_path, restval_in_train=True)
    assert [image.image_id for image in joined.splits["train"]] == [3, 4]
    assert any("1 images of restval joined to train" in note for note in joined.notes)
    assert set(joined.splits) == {"train", "dev"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"split": "train", "sentences": []}, r"images\[1\]: expected str under 'filename'"),
        (entry("b.jpg", "trian"), r"images\[1\] \(b\.jpg\): found the split 'trian'"),
        (entry("b.jpg", "train", cocoid="7"), "expected int under 'cocoid', found '7'"),
        (
            {**entry("b.jpg", "train"), "sentences": [{}]},
            r"sentences\[0\]: expected str under 'raw'",
        ),
        ({"filename": "b.jpg", "split": "val"}, "expected list under 'sentences'"),
        ("b.jpg", r"images\[1\]: expected str under 'filename', found 'b.jpg'"),
        (entry("a.jpg", "train"), "'train' holds 1 images more than once"),
        (entry("a.jpg", "test"), "'train' and 'test' share 1 images"),
    ],
)
def test_broken_entries(tmp_path: Path, bad: Any, message: str) -> None:
    path = write(tmp_path, entry("a.jpg", "train"), bad)
    with pytest.raises(DataError, match=rf"dataset\.json.*{message}"):
        load_karpathy(path, tmp_path)


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    with pytest.raises(DataError, match=r"cannot read .*dataset\.json"):
        load_karpathy(path, tmp_path)
    path.write_text('{"images": [\n')
    with pytest.raises(DataError, match=r"dataset\.json, line 2: not JSON: "):
        load_karpathy(path, tmp_path)
    path.write_text("[]")
    with pytest.raises(DataError, match="list under 'images'"):
        load_karpathy(path, tmp_path)
    with pytest.raises(DataError, match="no folder of images"):
        load_karpathy(path, tmp_path / "nowhere")
