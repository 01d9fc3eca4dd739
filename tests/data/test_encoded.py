"""Encoded captions are read back as they were made, and never when anything about them differs."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.data import encoded
from captioner.data.captions import CaptionedImage
from captioner.data.encoded import encode_splits
from captioner.errors import DataError

SPLITS = {
    "train": [["a dog runs", "a dog"], ["two birds", "xylophone"]],
    "dev": [["a bird runs fast", "dog"]],
}
SETTINGS: dict[str, Any] = {"min_count": 1, "rare": "drop", "max_length": 3}


def images(captions: dict[str, list[list[str]]]) -> dict[str, list[CaptionedImage]]:
    return {
        split: [CaptionedImage(f"{n}", Path(f"{n}"), tuple(one), n) for n, one in enumerate(texts)]
        for split, texts in captions.items()
    }


def made(folder: Path, captions: Any = SPLITS, **changes: Any) -> Any:
    return encode_splits(images(captions), cache_dir=folder, **{**SETTINGS, **changes})


def files(folder: Path) -> list[Path]:
    return sorted((folder / "captions").glob("*"))


def same(one: Any, other: Any) -> bool:
    arrays = [
        (vars(one[1][split])[name], vars(other[1][split])[name])
        for split in SPLITS
        for name in vars(one[1][split])
    ]
    return one[0] == other[0] and all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in arrays
    )


def test_a_later_run_reads_what_an_earlier_one_has_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tmp_path)
    assert first[0].decode(first[1]["dev"].tokens.tolist()) == ["a", "runs", "dog"]
    assert first[1]["dev"].image_rows.tolist() == [0, 0] and first[1]["train"].skipped == 0
    monkeypatch.setattr(encoded, "tokenize", lambda caption: pytest.fail("encoded again"))
    assert same(made(tmp_path), first) and len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": 2},
        {"rare": "unk"},
        {"min_count": 2},
        {"captions": {**SPLITS, "dev": [["a bird runs fast"], ["dog"]]}},
        {"captions": {**SPLITS, "train": [["a dog runs", "a dot"], ["two birds", "xylophone"]]}},
    ],
)
def test_what_has_changed_is_encoded_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    made(tmp_path)
    again = made(tmp_path, **changes)
    assert len(files(tmp_path)) == 2
    assert same(again, made(tmp_path / "empty", **changes))


def test_so_is_what_the_code_would_split_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path)
    monkeypatch.setattr(encoded, "_CODE", ("tokenize.py", "vocabulary.py"))
    made(tmp_path)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "no array"])
def test_a_damaged_file_is_made_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = made(tmp_path)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    place = whole.index(b"xylophone")
    changed = whole[:place] + b"y" + whole[place + 1 :]
    damaged = {"cut": whole[:-9], "bit": changed, "empty": b""}
    if damage == "no array":  # in the place of an array, which numpy gives as bytes
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("vocabulary.npy", "text")
    else:
        path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        assert same(made(tmp_path), first)
    assert f"the encoded captions in {path} are damaged and made anew" in caplog.text
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO, logger="captioner"):
        assert same(made(tmp_path / "file"), made(tmp_path))
    assert "not kept for later runs: cannot write" in caplog.text


def test_captions_without_a_word_of_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 1 captions has a word of the vocabulary"):
        made(tmp_path, {**SPLITS, "dev": [["zebras zoom"]]})
    assert files(tmp_path) == []
