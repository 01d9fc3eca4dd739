"""A folder of images with a CSV or JSON Lines file of captions, and its own splits."""

import os.path
from collections.abc import Mapping
from pathlib import Path, PurePath

from captioner.data.captions import CaptionData, CaptionedImage, assemble
from captioner.data.formats.splits import SPLIT_NAMES, check_image_root, draw_splits
from captioner.data.formats.tables import Row, read_csv, read_jsonl
from captioner.errors import DataError

COLUMNS = ("image", "caption")
DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}
_READERS = {".csv": read_csv, ".jsonl": read_jsonl, ".ndjson": read_jsonl}
_DEV_SPELLINGS = ("dev", "val", "valid", "validation")
_SPLIT_SPELLINGS = {"train": "train", **dict.fromkeys(_DEV_SPELLINGS, "dev"), "test": "test"}


def load_folder(
    captions_file: Path | str,
    image_root: Path | str,
    *,
    split_fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> CaptionData:
    """Read a file with the columns image (relative to `image_root`), caption and optionally split.

    Without a split column the splits are drawn by `split_fractions` (DEFAULT_FRACTIONS) and `seed`.
    DataError names file and line of wrong columns, encodings, rows and splits.
    """
    captions_file, image_root = Path(captions_file), Path(image_root)
    check_image_root(image_root, captions_file)
    rows = _read_rows(captions_file)
    captions, notes = _captions(captions_file, rows)
    if any("split" in row for _, row in rows):
        splits = _named_splits(captions_file, rows)
    else:
        fractions = DEFAULT_FRACTIONS if split_fractions is None else split_fractions
        splits = draw_splits(captions, fractions=fractions, seed=seed)
        notes.append(f"{captions_file} has no split column: splits drawn with seed {seed}")
    images = {n: CaptionedImage(n, image_root / n, tuple(c), n) for n, c in captions.items()}
    return assemble(
        name=f"folder {image_root}",
        source=captions_file,
        splits={split: [images[name] for name in names] for split, names in splits.items()},
        notes=[f"folder of images {image_root}, captions from {captions_file}", *notes],
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


def _captions(path: Path, rows: list[Row]) -> tuple[dict[str, list[str]], list[str]]:
    """The captions of each image, in the file's order, and a note on rows that repeat one."""
    captions: dict[str, list[str]] = {}
    repeated: list[str] = []
    for line, row in rows:
        known = captions.setdefault(_image_name(path, line, row), [])
        if row["caption"] in known:
            repeated.append(f"line {line}")
        else:
            known.append(row["caption"])
    what = f"dropped {len(repeated)} rows of {path} that repeat an image and its caption"
    return captions, [f"{what}, the first: {repeated[0]}"] if repeated else []


def _named_splits(path: Path, rows: list[Row]) -> dict[str, list[str]]:
    """The images of each split that the rows name."""
    split_of: dict[str, str] = {}
    for line, row in rows:
        name, written = _image_name(path, line, row), row.get("split", "").strip()
        split = _SPLIT_SPELLINGS.get(written.lower())
        if split is None:
            raise DataError(
                f"{path}, line {line}: found the split {written!r}, expected one of "
                f"{', '.join(_SPLIT_SPELLINGS)}"
            )
        if split_of.setdefault(name, split) != split:
            raise DataError(
                f"{path}, line {line}: {name} is in split {split!r} here and in "
                f"{split_of[name]!r} above; an image may be in one split only"
            )
    splits = {split: [n for n, own in split_of.items() if own == split] for split in SPLIT_NAMES}
    return {split: names for split, names in splits.items() if names}


def _image_name(path: Path, line: int, row: dict[str, str]) -> str:
    written = row["image"].strip()
    if not written:
        raise DataError(f"{path}, line {line}: the image is empty; expected a file name")
    # One name for "a.jpg" and "./a.jpg", so that an image cannot slip into two splits.
    return PurePath(os.path.normpath(written)).as_posix()
