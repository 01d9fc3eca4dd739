"""Karpathy's JSON files (dataset_flickr8k.json, dataset_flickr30k.json, dataset_coco.json)."""

from pathlib import Path
from typing import Any

from captioner.data.captions import CaptionData, CaptionedImage, assemble
from captioner.data.formats.splits import SPLIT_NAMES, check_image_root
from captioner.errors import DataError
from captioner.files import read_json
from captioner.restore import describe

_SPLITS = {"train": "train", "val": "dev", "test": "test", "restval": "restval"}


def load_karpathy(
    json_path: Path | str, image_root: Path | str, *, restval_in_train: bool = False
) -> CaptionData:
    """Read a Karpathy JSON file; images lie in `image_root`, for COCO in its `filepath` below it.

    val becomes dev; COCO's restval (30,504 images that most papers train on) joins train or is left
    out, with a note. The image_id is `cocoid` where there is one, else the file name, so that
    Flickr8k's ids agree between its layouts. DataError names the file and the entry.
    """
    json_path, image_root = Path(json_path), Path(image_root)
    check_image_root(image_root, json_path)
    content = read_json(json_path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{json_path}: expected an object with a list under 'images', found none")
    splits: dict[str, list[CaptionedImage]] = {}
    for number, entry in enumerate(entries):
        split, image = _read_entry(f"{json_path}: images[{number}]", entry, image_root)
        splits.setdefault(split, []).append(image)
    notes = [f"Karpathy's {json_path}, images from {image_root}"]
    restval = splits.pop("restval", [])
    if restval and restval_in_train:
        splits.setdefault("train", []).extend(restval)
        notes.append(f"{len(restval)} images of restval joined to train")
    elif restval:
        what = f"{len(restval)} images of restval left out"
        notes.append(f"{what} (restval_in_train adds them to train)")
    ordered = {split: splits[split] for split in SPLIT_NAMES if split in splits}
    named = _field(str(json_path), {"dataset": json_path.stem, **content}, "dataset", str)
    name = f"{named}, Karpathy layout"
    return assemble(name=name, source=json_path, splits=ordered, notes=notes)


def _read_entry(where: str, entry: Any, image_root: Path) -> tuple[str, CaptionedImage]:
    filename = _field(where, entry, "filename", str)
    split = _field(where, entry, "split", str)
    if split not in _SPLITS:
        raise DataError(
            f"{where} ({filename}): found the split {split!r}, expected {', '.join(_SPLITS)}"
        )
    folder = _field(where, entry, "filepath", str) if "filepath" in entry else ""
    name = f"{folder}/{filename}" if folder else filename
    captions = tuple(
        _field(f"{where} ({filename}): sentences[{number}]", sentence, "raw", str)
        for number, sentence in enumerate(_field(where, entry, "sentences", list))
    )
    image_id = _field(where, entry, "cocoid", int) if "cocoid" in entry else filename
    return _SPLITS[split], CaptionedImage(name, image_root / name, captions, image_id)


def _field(where: str, entry: Any, key: str, kind: type) -> Any:
    if not isinstance(entry, dict) or type(entry.get(key)) is not kind:  # a bool is no int here
        found = describe(entry.get(key) if isinstance(entry, dict) else entry)
        raise DataError(f"{where}: expected {kind.__name__} under {key!r}, found {found}")
    return entry[key]
