"""A folder of photographs with a CSV or JSON Lines file of captions, and its own splits."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from captioner.data.captions import CaptionData, CaptionedImage, assemble
from captioner.data.formats.splits import SPLIT_NAMES, draw_splits
from captioner.data.formats.tables import Row, read_csv, read_jsonl
from captioner.errors import DataError

COLUMNS = ("image", "caption")
DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}
_READERS = {".csv": read_csv, ".jsonl": read_jsonl, ".ndjson": read_jsonl}
_SPLIT_SPELLINGS = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}


@dataclass
class _Picture:
    split: str | None
    captions: list[str] = field(default_factory=list)


def load_folder(
    captions_file: Path | str,
    image_root: Path | str,
    *,
    split_fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> CaptionData:
    """Read a file with the columns image (relative to `image_root`), caption and optionally split.

    One row a caption. Without a split column the pictures are shared out by `split_fractions`
    (0.8 train, 0.1 dev, 0.1 test) and `seed`, always in the same way. DataError names file and line
    for wrong columns, wrong encoding, broken rows, unknown splits and a picture in two splits.
    """
    captions_file, image_root = Path(captions_file), Path(image_root)
    if not image_root.is_dir():
        raise DataError(f"there is no folder of pictures {image_root} for {captions_file}")
    rows = _read_rows(captions_file)
    pictures, notes = _gather(captions_file, rows)
    if any("split" in row for _, row in rows):
        names = _named_splits(pictures)
    else:
        fractions = DEFAULT_FRACTIONS if split_fractions is None else split_fractions
        names = draw_splits(pictures, fractions=fractions, seed=seed)
        notes.append(f"{captions_file} has no split column: splits drawn with seed {seed}")
    return assemble(
        name=f"folder {image_root}",
        source=captions_file,
        splits={
            split: [
                CaptionedImage(name, image_root / name, tuple(pictures[name].captions), name)
                for name in members
            ]
            for split, members in names.items()
        },
        notes=[f"folder of pictures {image_root}, captions from {captions_file}", *notes],
    )


def _read_rows(path: Path) -> list[Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: found the ending {path.suffix!r}, expected {', '.join(_READERS)}")
    rows = reader(path, columns=COLUMNS)
    if not rows:
        raise DataError(
            f"{path} holds no captions; expected a row for each, with image and caption"
        )
    return rows


def _gather(path: Path, rows: list[Row]) -> tuple[dict[str, _Picture], list[str]]:
    """The captions of each picture, in the file's order, and a note on rows that repeat one."""
    with_split = any("split" in row for _, row in rows)
    pictures: dict[str, _Picture] = {}
    repeated: list[str] = []
    for line, row in rows:
        name = _picture_name(path, line, row)
        split = _split_name(path, line, row) if with_split else None
        picture = pictures.setdefault(name, _Picture(split))
        if picture.split != split:
            raise DataError(
                f"{path}, line {line}: {name} is in split {split!r} here and in {picture.split!r} "
                "above; a picture may be in one split only"
            )
        if row["caption"] in picture.captions:
            repeated.append(f"line {line}")
        else:
            picture.captions.append(row["caption"])
    what = f"dropped {len(repeated)} rows of {path} that repeat a picture and its caption"
    return pictures, [f"{what}, the first: {repeated[0]}"] if repeated else []


def _picture_name(path: Path, line: int, row: dict[str, str]) -> str:
    written = row["image"].strip()
    if not written:
        raise DataError(f"{path}, line {line}: the image is empty; expected a file name")
    # One name for "a.jpg" and "./a.jpg", so that a picture cannot slip into two splits.
    return PurePath(os.path.normpath(written)).as_posix()


def _split_name(path: Path, line: int, row: dict[str, str]) -> str:
    written = row.get("split", "").strip()
    if written.lower() not in _SPLIT_SPELLINGS:
        raise DataError(
            f"{path}, line {line}: found the split {written!r}, expected one of "
            f"{', '.join(_SPLIT_SPELLINGS)}"
        )
    return _SPLIT_SPELLINGS[written.lower()]


def _named_splits(pictures: Mapping[str, _Picture]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for split in SPLIT_NAMES:
        members = [name for name, picture in pictures.items() if picture.split == split]
        if members:
            splits[split] = members
    return splits
