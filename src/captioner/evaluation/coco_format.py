"""COCO's caption files: results (a list of image_id and caption) and annotations (references)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.files import read_json, write_json
from captioner.restore import describe

ImageId = int | str


def read_results(path: Path | str) -> dict[ImageId, str]:
    """The caption of each image in a COCO results file.

    Raises DataError naming the file and the entry for another shape, a caption that is no string,
    or an image captioned twice.
    """
    results: dict[ImageId, str] = {}
    for place, image_id, caption in _captions(path, read_json(path), "results"):
        if image_id in results:
            raise DataError(
                f"{path}: {place} captions image {image_id!r} a second time; expected one each"
            )
        results[image_id] = caption
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
    for place, image_id, caption in _captions(path, content["annotations"], "annotations"):
        if listed and image_id not in references:
            raise DataError(f'{path}: {place} is of image {image_id!r}, which "images" lacks')
        references.setdefault(image_id, []).append(caption)
    return references


def write_results(path: Path | str, hypotheses: Mapping[ImageId, str]) -> None:
    """Write one caption an image as a COCO results file, atomically."""
    write_json(path, [{"image_id": i, "caption": caption} for i, caption in hypotheses.items()])


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
    write_json(path, {**header, "images": images, "annotations": annotations})


def _listed_images(path: Path | str, content: dict[str, Any]) -> Iterator[ImageId]:
    images = content.get("images", [])
    if not isinstance(images, list):
        raise DataError(f'{path}: expected "images" to be a list, found {describe(images)}')
    for number, image in enumerate(images):
        image_id: Any = image.get("id") if isinstance(image, dict) else None
        if not _is_image_id(image_id):
            raise DataError(
                f'{path}: images[{number}] needs an "id", an integer or a string, '
                f"found {describe(image)}"
            )
        yield image_id


def _captions(path: Path | str, entries: Any, kind: str) -> Iterator[tuple[str, ImageId, str]]:
    """Each entry's place in the file, image and caption, checked."""
    expected = 'a list of {"image_id": integer or string, "caption": string}'
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected {kind}, {expected}, found {describe(entries)}")
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
        yield place, image_id, caption


def _is_image_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
