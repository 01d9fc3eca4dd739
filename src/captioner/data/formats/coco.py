"""COCO caption annotations (captions_train2017.json and the like), through pycocotools."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from pycocotools.coco import COCO

from captioner.data.captions import CaptionData, CaptionedImage, assemble, duplicates
from captioner.data.formats.splits import SPLIT_NAMES, check_image_root
from captioner.errors import ConfigError, DataError
from captioner.files import read_json
from captioner.restore import restore


class _Image(TypedDict):
    id: int
    file_name: str


class _Annotation(TypedDict):
    id: int
    image_id: int
    caption: str


class _Captions(TypedDict):
    images: list[_Image]
    annotations: list[_Annotation]


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
    content = _read_captions(path)
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


def _read_captions(path: Path) -> _Captions:
    try:
        content: _Captions = restore(_Captions, read_json(path), str(path))
    except DataError as error:
        raise DataError(f"{error}; expected COCO's captions, a captions_*.json file") from error
    for table, rows in (("images", content["images"]), ("annotations", content["annotations"])):
        if not rows:
            raise DataError(f"{path}: expected COCO's captions, found no row in {table!r}")
        if twice := duplicates(row["id"] for row in rows):
            raise DataError(f"{path}: the id {twice[0]} stands twice in {table!r}")
    return content
