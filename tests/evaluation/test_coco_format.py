from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captioner.errors import DataError
from captioner.evaluation.coco_format import (
    read_references,
    read_results,
    write_references,
    write_results,
)


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_results_survive_a_round_trip(tmp_path: Path) -> None:
    results: dict[int | str, str] = {3: "a dog", "b.jpg": "café “x”\n", 1: ""}
    write_results(tmp_path / "r.json", results)
    assert list(read_results(tmp_path / "r.json").items()) == list(results.items())
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))[0] == {
        "image_id": 3,
        "caption": "a dog",
    }


def test_references_survive_a_round_trip(tmp_path: Path) -> None:
    references: dict[int | str, list[str]] = {3: ["a dog", "the dog"], 1: [], 2: ["a cat"]}
    write_references(tmp_path / "a.json", references, file_names={3: "3.jpg"})
    assert list(read_references(tmp_path / "a.json").items()) == list(references.items())
    content = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert content["images"] == [{"id": 3, "file_name": "3.jpg"}, {"id": 1}, {"id": 2}]
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3]


def test_pycocotools_reads_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    write_references(tmp_path / "a.json", {3: ["a dog", "the dog"], 5: ["a cat"]})
    write_results(tmp_path / "r.json", {3: "a dog", 5: "cat"})
    annotations = coco.COCO(str(tmp_path / "a.json"))
    annotations.info()
    results = annotations.loadRes(str(tmp_path / "r.json"))
    assert [a["caption"] for a in annotations.imgToAnns[3]] == ["a dog", "the dog"]
    assert [a["caption"] for a in results.imgToAnns[5]] == ["cat"]


def test_annotations_need_no_list_of_images(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {"annotations": [{"image_id": 7, "caption": "x", "id": 1}]})
    assert read_references(path) == {7: ["x"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "expected results, a list of .*found an object with the keys 'a'"),
        ([["a", "b"]], r"results\[0\] is a list of 2"),
        ([{"image_id": 1}], r"results\[0\] is an object with the keys 'image_id'"),
        (
            [{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}],
            r"results\[1\] captions image 1 a second",
        ),
        (
            [{"image_id": 1, "caption": None}],
            "image 1: expected the caption to be a string, found None",
        ),
        ([{"image_id": "x", "caption": ["a"]}], "image 'x'.*found a list of 1"),
        (
            [{"image_id": True, "caption": "a"}],
            "expected image_id to be an integer or a string, found True",
        ),
        ([{"image_id": 1.5, "caption": "a"}], "found 1.5"),
        ([{"image_id": float("nan"), "caption": "a"}], "line 1: NaN is no number of JSON"),
        ("x" * 500, r"found 'x+\.\.\.$"),
    ],
)
def test_a_bad_results_file_is_named_with_its_entry(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = written(tmp_path / "hyp.json", content)
    with pytest.raises(DataError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "caption": "a"}], "expected COCO annotations.*found a list of 1"),
        ({"images": []}, "expected COCO annotations.*the keys 'images'"),
        ({"annotations": {"1": "a"}}, "expected annotations, a list"),
        ({"images": {}, "annotations": []}, 'expected "images" to be a list'),
        ({"images": [{"name": "x"}], "annotations": []}, r'images\[0\] needs an "id"'),
        ({"images": [5], "annotations": []}, r"images\[0\] needs.*found 5"),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": "1", "caption": "a"}]},
            r"annotations\[0\] is of image '1', which \"images\" lacks",
        ),
        ({"annotations": [{"image_id": 4, "caption": 9}]}, r"annotations\[0\], image 4.*found 9"),
    ],
)
def test_a_bad_annotations_file_is_named_with_its_entry(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = written(tmp_path / "refs.json", content)
    with pytest.raises(DataError, match=message) as caught:
        read_references(path)
    assert str(path) in str(caught.value)


def test_missing_and_broken_files_are_data_errors(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[{"image_id": 1,')
    for name in ("absent.json", "broken.json"):
        with pytest.raises(DataError, match=name):
            read_results(tmp_path / name)
