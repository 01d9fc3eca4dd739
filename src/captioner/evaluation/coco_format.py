"""COCO's caption files: results (a list of image_id and caption) and annotations (references)."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.files import read_json, write_json_rows
from captioner.restore import describe

ImageId = int | str


def read_results(path: Path | str) -> dict[ImageId, str]:
    """The caption of each image in a COCO results file.

    Raises DataError naming the file and the entry for another shape, a caption that is no string,
    or an image captioned twice.
    """
    images, captions = _captions(path, read_json(path), "results")
    results = dict(zip(images, captions, strict=True))
    if len(results) < len(images):
        seen: set[ImageId] = set()
        for number, image_id in enumerate(images):
            if image_id in seen:
                raise DataError(
                    f"{path}: results[{number}] captions image {image_id!r} a second time; "
                    "expected one each"
                )
            seen.add(image_id)
    return results


def read_references(path: Path | str) -> dict[ImageId, list[str]]:
    """The captions of each image in a COCO annotations file, in the file's order.

    An image that is listed without a caption gets an empty list. Raises DataError naming the file
    and the entry for another shape, a caption that is no string, or one of an unlisted image.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "annotations" not in content:
        raise DataError(
            f'{path}: expected COCO annotations, {{"images": [...], "annotations": [...]}}, '
            f"found {describe(content)}"
        )
    references: dict[ImageId, list[str]] = {i: [] for i in _listed_images(path, content)}
    listed = bool(references)
    images, captions = _captions(path, content["annotations"], "annotations")
    if not listed:
        references = {image: [] for image in images}
    try:
        for image_id, caption in zip(images, captions, strict=True):
            references[image_id].append(caption)
    except KeyError:
        at = next(at for at, image_id in enumerate(images) if image_id not in references)
        raise DataError(
            f'{path}: annotations[{at}] is of image {images[at]!r}, which "images" lacks'
        ) from None
    return references


def write_results(path: Path | str, hypotheses: Mapping[ImageId, str]) -> None:
    """Write one caption an image as a COCO results file, atomically."""
    rows = [{"image_id": i, "caption": caption} for i, caption in hypotheses.items()]
    write_json_rows(path, rows)


def write_references(
    path: Path | str,
    references: Mapping[ImageId, Sequence[str]],
    *,
    file_names: Mapping[ImageId, str] | None = None,
) -> None:
    """Write the captions of each image as a COCO annotations file, atomically; ids count from 1."""
    names = file_names or {}
    pairs = ((i, caption) for i, captions in references.items() for caption in captions)
    images = [{"id": i, "file_name": names[i]} if i in names else {"id": i} for i in references]
    annotations = [
        {"id": number, "image_id": i, "caption": caption}
        for number, (i, caption) in enumerate(pairs, start=1)
    ]
    header = {"info": {}, "licenses": [], "type": "captions"}
    write_json_rows(path, {**header, "images": images, "annotations": annotations})


def _listed_images(path: Path | str, content: dict[str, Any]) -> Sequence[ImageId]:
    images = content.get("images", [])
    if not isinstance(images, list):
        raise DataError(f'{path}: expected "images" to be a list, found {describe(images)}')
    columns = _columns(images, {"id": _ID})
    if columns is not None:
        return columns[0]
    for number, image in enumerate(images):
        image_id: Any = image.get("id") if isinstance(image, dict) else None
        if not _is_image_id(image_id):
            raise DataError(
                f'{path}: images[{number}] needs an "id", an integer or a string, '
                f"found {describe(image)}"
            )
    return [image["id"] for image in images]


def _captions(path: Path | str, entries: Any, kind: str) -> tuple[list[ImageId], list[str]]:
    """Each entry's image and caption, checked."""
    expected = 'a list of {"image_id": integer or string, "caption": string}'
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected {kind}, {expected}, found {describe(entries)}")
    columns = _columns(entries, {"image_id": _ID, "caption": {str}})
    if columns is not None:
        return columns[0], columns[1]
    for number, entry in enumerate(entries):
        place = f"{kind}[{number}]"
        if not isinstance(entry, dict) or not {"image_id", "caption"} <= entry.keys():
            raise DataError(
                f"{path}: {place} is {describe(entry)}; expected {kind} to be {expected}"
            )
        image_id, caption = entry["image_id"], entry["caption"]
        if not _is_image_id(image_id):
            raise DataError(
                f"{path}: {place}: expected image_id to be an integer or a string, "
                f"found {describe(image_id)}"
            )
        if not isinstance(caption, str):
            raise DataError(
                f"{path}: {place}, image {image_id!r}: expected the caption to be a string, "
                f"found {describe(caption)}"
            )
    return [entry["image_id"] for entry in entries], [entry["caption"] for entry in entries]


_ID = {int, str}


def _columns(entries: list[Any], kinds: Mapping[str, set[type]]) -> list[list[Any]] | None:
    """The values of each key, or None unless every entry has all of them, of these kinds: found out
    without a look at each of what may be hundreds of thousands."""
    if not {*map(type, entries)} <= {dict}:
        return None
    try:
        columns = [[*map(itemgetter(key), entries)] for key in kinds]
    except KeyError:
        return None
    right = zip(columns, kinds.values(), strict=True)
    return columns if all({*map(type, column)} <= kind for column, kind in right) else None


def _is_image_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
