"""The embedded data set: small images of coloured shapes that the package draws itself.

Each image shows one or two equal objects beside, above or below another object, and has five true
captions (captions.py). Everything follows from the seed: nothing is downloaded, and the true slots
of every image are known.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TypedDict

import numpy as np

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
from captioner.data.scenes.drawing import Box, draw_scene, lay_out
from captioner.errors import ConfigError, DataError
from captioner.files import atomic_write, read_json, remove_unfinished, write_json
from captioner.restore import Count, describe, restore

# To be raised whenever the same parameters would draw other images or write other captions.
FORMAT_VERSION = 5
SMALLEST_SIZE = 32  # pixels; below it a small triangle cannot be recognised
_TRUTH = "scenes.json"
_OBJECT = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
_VALUES = {"count": COUNTS, "relation": RELATIONS, **_OBJECT}
_VALUES |= {f"{slot}2": values for slot, values in _OBJECT.items()}


class _Truth(TypedDict):
    """What is stored of the images that were drawn."""

    scenes: dict[str, Scene]


class _Parameters(TypedDict):
    seed: Count


class _Drawn(TypedDict):
    parameters: _Parameters


@lru_cache(maxsize=1)
def all_scenes() -> tuple[Scene, ...]:
    """Every scene there is, once; its two kinds of object differ in colour or shape.

    Two single objects can be described from either; only the description with "left" or "above" is
    listed, so that no two scenes look the same.
    """
    objects = list(product(SIZES, COLOURS, SHAPES))
    return tuple(
        Scene(count, *group, relation, *other)
        for count, group, relation, other in product(COUNTS, objects, RELATIONS, objects)
        if group[1:] != other[1:] and (count != "one" or relation in ("left", "above"))
    )


def draw_scenes(
    root: Path | str, *, train: int, dev: int, test: int, size: int = 64, seed: int = 0
) -> CaptionData:
    """Draw three splits of images once, in a folder of their own under `root`.

    `train`, `dev` and `test` count images, no two of which show the same scene; `size` is their
    side in pixels. Called again with the same parameters it draws only what is missing; two
    processes may do so at once. ConfigError for an invalid count, size or seed; DataError when the
    folder cannot be written.
    """
    # Test first: with more training images, dev and test stay the same scenes.
    counts = {"test": test, "dev": dev, "train": train}
    _check(counts, size=size, seed=seed)
    parameters = {"format": FORMAT_VERSION, **counts, "size": size, "seed": seed}
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    folder = Path(root) / f"scenes-v{FORMAT_VERSION}-{digest[:12]}"
    splits: dict[str, list[CaptionedImage]] = {"train": [], "dev": [], "test": []}
    truth = {}
    # The number over all splits seeds an image's drawing and its captions, a stream each.
    for number, (split, name, scene) in enumerate(_plan(counts, seed)):
        captions = caption_scene(scene, _generator(seed, number, 1))
        path = folder / name
        if not _is_drawn(path):
            image = draw_scene(scene, _generator(seed, number, 2), size=size)
            with atomic_write(path, sync=False) as file:
                image.save(file, format="PNG", compress_level=0)  # noise does not compress
        splits[split].append(CaptionedImage(name, path, tuple(captions), image_id=name))
        truth[name] = scene.slots()
    if not (folder / _TRUTH).exists():
        write_json(folder / _TRUTH, {"parameters": parameters, "scenes": truth})
        remove_unfinished(folder, "*.png")
    note = f"{size} pixels, seed {seed}; no scene occurs twice, in one split or in two"
    drawn = {split: tuple(images) for split, images in splits.items()}
    return CaptionData(f"scenes, format {FORMAT_VERSION}", drawn, (note,))


def load_scene_truth(folder: Path | str) -> dict[str, Scene]:
    """The scene of each image in a folder that draw_scenes made, by the image's name.

    The folder is the parent of any image's path. DataError when it is not such a folder.
    """
    path = Path(folder) / _TRUTH
    truth: _Truth = restore(_Truth, read_json(path), str(path))
    for name, scene in truth["scenes"].items():
        for slot, value in scene.slots().items():
            if value not in _VALUES[slot]:
                wrong = f"must be one of {', '.join(_VALUES[slot])}, found {describe(value)}"
                raise DataError(f"{path}: {describe(name)}: {slot} {wrong}")
    return truth["scenes"]


def load_scene_boxes(folder: Path | str) -> dict[str, tuple[list[Box], list[Box]]]:
    """Where the objects of each image in such a folder are, by the image's name: the boxes of the
    group and of the other object, in units of the image's side, drawn again from the seed.

    DataError as `load_scene_truth`.
    """
    truth = load_scene_truth(folder)
    path = Path(folder) / _TRUTH
    drawn: _Drawn = restore(_Drawn, read_json(path), str(path))
    seed = drawn["parameters"]["seed"]
    found = {}
    for number, (name, scene) in enumerate(truth.items()):  # listed in the order of their numbers
        _, (group, other) = lay_out(scene, _generator(seed, number, 2))
        found[name] = group.boxes(), other.boxes()
    return found


def _check(counts: dict[str, int], *, size: int, seed: int) -> None:
    for split, number in counts.items():
        if number < 0:
            raise ConfigError(f"scenes: {split} must be a number of images, got {number}")
    wanted, there = sum(counts.values()), len(all_scenes())
    if wanted > there:
        what = f"{wanted} images asked for, but there are only {there} different scenes"
        raise ConfigError(f"scenes: {what}")
    if size < SMALLEST_SIZE:
        raise ConfigError(f"scenes: size must be at least {SMALLEST_SIZE} pixels, got {size}")
    if seed < 0:
        raise ConfigError(f"scenes: seed must not be negative, got {seed}")


def _generator(seed: int, number: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, number, purpose]))


def _plan(counts: dict[str, int], seed: int) -> Iterator[tuple[str, str, Scene]]:
    """Split, file name and scene of every image: the scenes, shuffled, split by split."""
    # Sorting .random() shuffles alike in every NumPy version; permutation() does not promise to.
    order = np.argsort(_generator(seed, 0, 3).random(len(all_scenes())), kind="stable")
    shuffled = (all_scenes()[k] for k in order)
    for split, count in counts.items():
        for within in range(count):
            yield split, f"{split}-{within:05d}.png", next(shuffled)


def _is_drawn(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
