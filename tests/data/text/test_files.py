"""Files and splits of a text: cut where characters and lines begin, and refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.data.text import files as text_files
from captioner.data.text.files import Document, find_text, python_library, tiny_shakespeare
from captioner.errors import DataError

EVERY = {"pattern": "*.txt", "dev_fraction": 0.1, "test_fraction": 0.0}


def text_of(documents: list[Document]) -> str:
    return "".join(piece for document in documents for piece in document.pieces())


def test_a_file_is_cut_as_the_usual_split_of_characters(tmp_path: Path) -> None:
    text = "".join(chr(97 + k % 26) for k in range(1115))
    (tmp_path / "a.txt").write_text(text)
    splits = find_text(tmp_path / "a.txt", **EVERY)
    cut = int(len(text) * 0.9)
    assert (text_of(splits["train"]), text_of(splits["dev"])) == (text[:cut], text[cut:])
    assert list(splits) == ["train", "dev"]


@pytest.mark.parametrize("whole_lines", [False, True])
@pytest.mark.parametrize("length", range(30, 45))
def test_cuts_fall_between_characters_and_lose_nothing(
    tmp_path: Path, length: int, whole_lines: bool
) -> None:
    text = ("\N{EURO SIGN}\n\N{GRINNING FACE}\N{LATIN SMALL LETTER E WITH ACUTE}x\n" * 20)[:length]
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    splits = find_text(
        tmp_path / "a.txt", pattern="", dev_fraction=0.3, test_fraction=0.3, whole_lines=whole_lines
    )
    parts = [text_of(splits[name]) for name in ("train", "dev", "test")]
    assert "".join(parts) == text
    if whole_lines:
        assert all(part.endswith("\n") for part in parts[:2])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
def test_characters_cut_by_a_block_are_put_together(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_CHUNK", chunk)
    text = "a\N{EURO SIGN}b\N{GRINNING FACE}\N{LATIN SMALL LETTER E WITH ACUTE}" * 3
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark
    (whole,) = find_text(path, pattern="", dev_fraction=0.0, test_fraction=0.0)["train"]
    assert text_of([whole]) == text
    for bad, at in ((b"\xff", 13), (b"\xe2\x82", 13), (b"\xc3(", 13)):
        path.write_bytes(b"a" * 13 + bad)
        with pytest.raises(DataError, match=rf"a\.txt is not UTF-8: byte {at} is 0x{bad[0]:02x}"):
            text_of([Document(path, 0, 13 + len(bad))])


@pytest.mark.parametrize(
    "names",
    [
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("train.txt", "val.txt", "test.txt"),
    ],
)
def test_files_named_for_their_splits_are_taken_so(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in (*names, "README", "training_notes.txt"):
        (tmp_path / name).write_text(name)
    splits = find_text(tmp_path, **EVERY)
    assert {s: text_of(d) for s, d in splits.items()} == dict(
        zip(("train", "dev", "test"), names, strict=True)
    )
    (tmp_path / "other.train.txt").write_text("x")
    with pytest.raises(DataError, match=r"several files for one split: other\.train\.txt"):
        find_text(tmp_path, **EVERY)


def test_a_folder_is_dealt_out_in_whole_files(tmp_path: Path) -> None:
    for k in range(40):
        (tmp_path / f"{k:02}.txt").write_text(f"{k:02}" * 50)
    (tmp_path / "image.png").write_bytes(b"\xff")
    splits = find_text(tmp_path, pattern="*.txt", dev_fraction=0.1, test_fraction=0.2)
    names = {s: [d.path.name for d in documents] for s, documents in splits.items()}
    assert [len(names[s]) for s in ("train", "dev", "test")] == [28, 4, 8]
    everything = [name for part in names.values() for name in part]
    assert sorted(everything) == [f"{k:02}.txt" for k in range(40)]
    assert names["dev"] != [f"{k:02}.txt" for k in range(36, 40)]  # drawn, not the last
    other = find_text(tmp_path, pattern="*.txt", dev_fraction=0.1, test_fraction=0.2, seed=1)
    assert [d.path.name for d in other["dev"]] != names["dev"]


def test_what_cannot_be_a_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no text at .*nothing\.txt"):
        find_text(tmp_path / "nothing.txt", **EVERY)
    with pytest.raises(DataError, match=r"no text in .*\(files \*\.txt\)"):
        find_text(tmp_path, **EVERY)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        find_text(tmp_path / "empty.txt", **EVERY)
    (tmp_path / "one.txt").write_text("x")
    with pytest.raises(DataError, match=r"one\.txt has 1 bytes, which leaves none for .*'train'"):
        find_text(tmp_path / "one.txt", **EVERY)
    with pytest.raises(DataError, match=r"one\.txt is damaged or another file: sha256"):
        tiny_shakespeare(tmp_path / "one.txt", cache_dir=tmp_path)


def test_every_installation_has_a_text_to_learn() -> None:
    splits = python_library(dev_fraction=0.1, test_fraction=0.0)
    assert "import" in text_of(splits["dev"][:1])
    sizes = {split: sum(d.size for d in documents) for split, documents in splits.items()}
    assert sizes["train"] > 2_000_000
    assert 0.1 <= sizes["dev"] / sum(sizes.values()) < 0.2
