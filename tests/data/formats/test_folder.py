from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioner.data.formats.folder import load_folder
from captioner.errors import DataError

HEADER = "image,caption"


def write(folder: Path, *lines: str, name: str = "captions.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes("\n".join([*lines, ""]).encode(encoding))
    return path


def write_images(folder: Path, *names: str) -> Path:
    root = folder / "photos"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ten(folder: Path) -> tuple[list[str], Path]:
    names = [f"{number}.jpg" for number in range(10)]
    return names, write_images(folder, *names)


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    names, root = ten(tmp_path)
    rows = [(name, f'image {name}, "{word}" café') for name in names for word in ("one", "two")]
    quoted = ['{},"{}"'.format(name, caption.replace('"', '""')) for name, caption in rows]
    csv = load_folder(write(tmp_path, HEADER, *quoted), root)
    lines = [json.dumps({"image": name, "caption": caption}) for name, caption in rows]
    jsonl = load_folder(write(tmp_path, *lines, name="captions.jsonl"), root)
    assert csv.splits == jsonl.splits
    assert {key: len(images) for key, images in csv.splits.items()} == {
        "train": 8,
        "dev": 1,
        "test": 1,
    }
    first = csv.split("train")[0]
    assert first.captions[0] == f'image {first.name}, "one" café'
    assert any("splits drawn with seed 0" in note for note in csv.notes)


def test_drawn_splits_follow_the_seed_and_fractions_not_the_order(tmp_path: Path) -> None:
    names, root = ten(tmp_path)
    rows = [f"{name},a dog runs" for name in names]
    half = {"train": 0.5, "dev": 0.5}

    def train(*lines: str, seed: int) -> list[str]:
        data = load_folder(write(tmp_path, HEADER, *lines), root, split_fractions=half, seed=seed)
        return [image.name for image in data.split("train")]

    assert len(train(*rows, seed=0)) == 5
    assert train(*rows, seed=0) == train(*reversed(rows), seed=0)
    assert train(*rows, seed=0) != train(*rows, seed=1)


def test_splits_of_its_own(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.jpg", "sub/b.jpg")
    path = write(
        tmp_path, "split,image,caption", "train,a.jpg,a dog runs", "val,./sub/b.jpg,two cats sit"
    )
    data = load_folder(path, root)
    assert [image.name for image in data.split("dev")] == ["sub/b.jpg"]
    with pytest.raises(DataError, match="no split 'test'; the splits there are: train, dev"):
        data.split("test")


def test_an_image_in_two_splits(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.jpg")
    path = write(
        tmp_path, "image,caption,split", "a.jpg,a dog runs,train", "./a.jpg,a dog is running,test"
    )
    with pytest.raises(DataError, match=r"line 3: a\.jpg is in split 'test' here and in 'train'"):
        load_folder(path, root)


def test_missing_images_are_told_for_the_split_that_is_asked_for(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.jpg")
    lines = ["a.jpg,a dog runs,train", "b.jpg,a dog runs,test", "c.jpg,a dog runs,test"]
    data = load_folder(write(tmp_path, "image,caption,split", *lines), root)
    assert len(data.split("train")) == 1
    with pytest.raises(DataError, match=r"2 of 2 images are missing, the first: .*b\.jpg"):
        data.split("test")


def test_repeated_rows_are_dropped_and_noted(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.jpg")
    row = "a.jpg,a dog runs,train"
    data = load_folder(write(tmp_path, "image,caption,split", row, row, row), root)
    assert data.split("train")[0].captions == ("a dog runs",)
    assert any("dropped 2 rows" in note and "line 3" in note for note in data.notes)


def test_a_row_number_counts_line_ends_inside_quotes(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.jpg")
    path = write(tmp_path, HEADER, 'a.jpg,"a dog\nruns"', "a.jpg,one,two")
    with pytest.raises(DataError, match=r"line 4: found 3 fields, expected 2.*double quotes"):
        load_folder(path, root)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,text", "a.jpg,b c"], "line 1: found the columns file, text; expected.*image, cap"),
        (["image;caption", "a.jpg;b c"], "line 1: found the columns image;caption"),
        (["image,caption,caption", "a,b,c"], "line 1: the column 'caption' stands there twice"),
        ([HEADER, "a.jpg,b c,d"], "line 2: found 3 fields"),
        ([HEADER, 'a.jpg,"b c'], "line 2: not a comma-separated row"),
        ([HEADER, ",b c"], "line 2: the image is empty"),
        ([HEADER], "holds no captions"),
        ([], "line 1: found the columns none"),
        (["image,caption,split", "a.jpg,b c,trian"], "line 2: found the split 'trian'"),
    ],
)
def test_broken_csv(tmp_path: Path, lines: list[str], message: str) -> None:
    root = write_images(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=rf"captions\.csv.*{message}"):
        load_folder(write(tmp_path, *lines), root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg"', "line 2: not JSON"),
        ('["a.jpg", "a dog"]', "line 2: expected an object"),
        ('"a.jpg"', "line 2: expected an object"),
        ('{"image": "a.jpg", "text": "a"}', "'caption', found only image, text"),
        ('{"image": "a.jpg", "caption": null}', "'caption', found None"),
        ('{"image": "a.jpg", "image": "b.jpg"}', "line 2: the key 'image' stands there twice"),
    ],
)
def test_broken_json_lines(tmp_path: Path, line: str, message: str) -> None:
    root = write_images(tmp_path, "a.jpg")
    good = '{"image": "a.jpg", "caption": "a dog runs"}'
    with pytest.raises(DataError, match=rf"captions\.jsonl, .*{message}"):
        load_folder(write(tmp_path, good, line, name="captions.jsonl"), root)


def test_other_encodings(tmp_path: Path) -> None:
    _, root = ten(tmp_path)
    lines = [
        HEADER,
        *(f"{number}.jpg,un chien court" for number in range(10)),
        "0.jpg,au café noir",
    ]
    with_mark = load_folder(write(tmp_path, *lines, encoding="utf-8-sig"), root)
    assert sum(len(images) for images in with_mark.splits.values()) == 10
    with pytest.raises(DataError, match=r"captions\.csv, line 12: found the byte 0xe9.*UTF-8"):
        load_folder(write(tmp_path, *lines, encoding="latin-1"), root)
    with pytest.raises(DataError, match="line 1: found the byte 0xff"):
        load_folder(write(tmp_path, *lines, encoding="utf-16"), root)


def test_windows_line_ends(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.jpg")
    path = write(tmp_path, "image,caption,split\r", "a.jpg,a dog runs,train\r")
    assert load_folder(path, root).split("train")[0].captions == ("a dog runs",)


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"cannot read .*none\.csv: No such file"):
        load_folder(tmp_path / "none.csv", root)
    with pytest.raises(DataError, match=r"found the ending '\.xlsx', expected \.csv, \.jsonl"):
        load_folder(tmp_path / "captions.xlsx", root)
    with pytest.raises(DataError, match="there is no folder of images"):
        load_folder(write(tmp_path, HEADER, "a.jpg,b c"), tmp_path / "nowhere")


def test_empty_and_one_word_captions(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.jpg", "b.jpg")
    lines = ["a.jpg,a dog runs,train", "a.jpg,,train", "b.jpg,Dog,train"]
    data = load_folder(write(tmp_path, "image,caption,split", *lines), root)
    assert [image.name for image in data.split("train")] == ["a.jpg"]
    assert "dropped 1 empty captions, the first: a.jpg" in data.notes
    with pytest.raises(DataError, match="keeps no caption"):
        load_folder(write(tmp_path, "image,caption,split", *lines[1:]), root)
