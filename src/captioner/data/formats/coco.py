"""COCO caption annotations (captions_train2017.json and the like), through pycocotools."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from captioner.data.captions import CaptionData, CaptionedImage, assemble, duplicates
from captioner.data.formats.splits import SPLIT_NAMES, check_image_root
from captioner.errors import ConfigError, DataError
from captioner.files import read_json

_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "caption": str},
}


def load_coco(
    annotations: Mapping[str, Path | str], image_roots: Mapping[str, Path | str]
) -> CaptionData:
    """Read one annotation file and one folder of images for each of the splits train, dev, test.

    The image_id is COCO's integer. DataError names the file and the entry for a file of another
    kind (instances, keypoints), doubled ids, and captions of images that the file does not list;
    ConfigError when the two mappings do not name the same splits.
    """
    named = set(annotations)
    if not named or named - set(SPLIT_NAMES) or named != set(image_roots):
        raise ConfigError(
            f"COCO: found annotations for {list(annotations)}, images for {list(image_roots)}; "
            f"expected the same splits in both, out of {', '.join(SPLIT_NAMES)}"
        )
    splits: dict[str, list[CaptionedImage]] = {}
    notes: list[str] = []
    for split in (name for name in SPLIT_NAMES if name in annotations):
        path, root = Path(annotations[split]), Path(image_roots[split])
        check_image_root(root, path)
        splits[split] = _read_split(path, root)
        notes.append(f"COCO captions, {split}: {path}, images from {root}")
    source = ", ".join(str(path) for path in annotations.values())
    return assemble(name="COCO captions", source=source, splits=splits, notes=notes)


def _read_split(path: Path, root: Path) -> list[CaptionedImage]:
    content = read_json(path)
    for table, fields in _FIELDS.items():
        _check_table(path, content, table, fields)
    known = {row["id"] for row in content["images"]}
    unknown = [row["id"] for row in content["annotations"] if row["image_id"] not in known]
    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} annotations are of images not under 'images', "
            f"the first: annotation {unknown[0]}"
        )
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    images = []
    for image_id in sorted(coco.getImgIds()):
        name = coco.imgs[image_id]["file_name"]
        captions = tuple(row["caption"] for row in coco.imgToAnns[image_id])
        images.append(CaptionedImage(name, root / name, captions, image_id))
    return images


def _check_table(path: Path, content: Any, table: str, fields: Mapping[str, type]) -> None:
    rows = content.get(table) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected COCO captions with a list under {table!r}, found none")
    for number, row in enumerate(rows):
        for key, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                raise DataError(
                    f"{path}: {table}[{number}] has no {key!r} of type {kind.__name__}; "
                    "expected a captions_*.json file"
                )
    if twice := duplicates(row["id"] for row in rows):
        raise DataError(f"{path}: the id {twice[0]} stands twice in {table!r}")
