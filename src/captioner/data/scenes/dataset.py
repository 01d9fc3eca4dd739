"""The embedded data set: small pictures of coloured shapes that the package draws itself.

Each picture shows one or two equal objects beside, above or below another object, and has five
true captions (scene_captions.py). Everything follows from the seed, so nothing is downloaded and
the truth of every picture is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from captioner.data.captions import CaptionData, CaptionedImage
from captioner.data.scenes.captions import (
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    caption_scene,
)
from captioner.data.scenes.drawing import draw_scene
from captioner.errors import ConfigError, DataError
from captioner.files import read_json, write_json

# To be raised whenever the same parameters would draw other pictures or write other captions.
FORMAT_VERSION = 5
SMALLEST_SIZE = 32  # pixels; below it a small star is a blot
_TRUTH = "scenes.json"


@lru_cache(maxsize=1)
def all_scenes() -> tuple[Scene, ...]:
    """Every scene there is, once; its two kinds of object differ in colour or shape.

    Two single objects could be told from either; only the telling with "left" or "above" is listed,
    so that no two scenes look the same.
    """
    objects = list(product(SIZES, COLOURS, SHAPES))
    return tuple(
        Scene(count, *group, relation, *other)
        for count, group, relation, other in product(COUNTS, objects, RELATIONS, objects)
        if group[1:] != other[1:] and (count != "one" or relation in ("left", "above"))
    )


@dataclass(frozen=True)
class _Picture:
    """One picture to be: its number over all splits seeds its jitter and its captions."""

    number: int
    split: str
    name: str
    scene: Scene


def draw_scenes(
    root: Path | str, *, train: int, dev: int, test: int, size: int = 64, seed: int = 0
) -> CaptionData:
    """Draw three splits of pictures once, in a folder of their own under `root`.

    `train`, `dev` and `test` count pictures, no two of which show the same scene; `size` is their
    side in pixels. Called again with the same parameters it draws only what is missing; two
    processes may do so at once. ConfigError for a count, size or seed that cannot be; DataError
    when the folder cannot be written.
    """
    # Test first: with more training pictures, dev and test stay the same scenes.
    counts = {"test": test, "dev": dev, "train": train}
    _check(counts, size=size, seed=seed)
    parameters = {"format": FORMAT_VERSION, **counts, "size": size, "seed": seed}
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    folder = Path(root) / f"scenes-v{FORMAT_VERSION}-{digest[:12]}"
    pictures = _plan(counts, seed)
    splits: dict[str, list[CaptionedImage]] = {"train": [], "dev": [], "test": []}
    for picture in pictures:
        # Captions and drawing have a stream each, so that a change to one leaves the other be.
        captions = caption_scene(picture.scene, _generator(seed, picture.number, 1))
        path = folder / picture.name
        if not _is_drawn(path):
            image = draw_scene(picture.scene, _generator(seed, picture.number, 2), size=size)
            _save(image, path)
        splits[picture.split].append(
            CaptionedImage(
                name=picture.name, path=path, captions=tuple(captions), image_id=picture.name
            )
        )
    if not (folder / _TRUTH).exists():
        scenes = {picture.name: picture.scene.slots() for picture in pictures}
        write_json(folder / _TRUTH, {"parameters": parameters, "scenes": scenes})
    note = f"{size} pixels, seed {seed}; no scene occurs twice, in one split or in two"
    return CaptionData(
        name=f"scenes, format {FORMAT_VERSION}",
        splits={split: tuple(items) for split, items in splits.items()},
        notes=(note,),
    )


def load_scene_truth(folder: Path | str) -> dict[str, Scene]:
    """The scene of each picture in a folder that draw_scenes made, by the picture's name.

    The folder is the parent of any picture's path. DataError when it is not such a folder.
    """
    path = Path(folder) / _TRUTH
    try:
        return {name: Scene(**slots) for name, slots in read_json(path)["scenes"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not list scenes as draw_scenes writes them: {error}"
        ) from error


def _check(counts: dict[str, int], *, size: int, seed: int) -> None:
    for split, number in counts.items():
        if number < 0:
            raise ConfigError(f"scenes: {split} must be a number of pictures, got {number}")
    if sum(counts.values()) > len(all_scenes()):
        raise ConfigError(
            f"scenes: {sum(counts.values())} pictures asked for, "
            f"but there are only {len(all_scenes())} different scenes"
        )
    if size < SMALLEST_SIZE:
        raise ConfigError(f"scenes: size must be at least {SMALLEST_SIZE} pixels, got {size}")
    if seed < 0:
        raise ConfigError(f"scenes: seed must not be negative, got {seed}")


def _generator(seed: int, number: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, number, purpose]))


def _plan(counts: dict[str, int], seed: int) -> list[_Picture]:
    """Deal the scenes, shuffled, to the splits in turn."""
    # Sorting .random() shuffles alike in every NumPy version; permutation() does not promise to.
    order = np.argsort(_generator(seed, 0, 3).random(len(all_scenes())), kind="stable")
    pictures: list[_Picture] = []
    for split, count in counts.items():
        for within in range(count):
            number = len(pictures)
            scene = all_scenes()[order[number]]
            pictures.append(_Picture(number, split, f"{split}-{within:05d}.png", scene))
    return pictures


def _is_drawn(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _save(image: Image.Image, path: Path) -> None:
    """Write whole or not at all, but without atomic_write's fsync: thousands of them take minutes.

    A picture lost with the power is drawn again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as handle:
                image.save(handle, format="PNG", compress_level=0)  # noise does not pack
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
