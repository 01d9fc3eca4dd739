"""Images with their captions, in named splits: what every data format is turned into."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from captioner.errors import DataError

Key = TypeVar("Key", bound=Hashable)
# A letter or a digit, and after a space another one: `count_words` of two or more, much faster.
_TWO_WORDS = re.compile(r"[^\W_]\S*\s(?s:.*?)[^\W_]")


@dataclass(frozen=True)
class CaptionedImage:
    """One image: its name (unique in the data), its file, its raw captions, its id in scores."""

    name: str
    path: Path
    captions: tuple[str, ...]
    image_id: int | str


@dataclass(frozen=True)
class CaptionData:
    """The splits of one data set, with notes on everything that was dropped or guessed."""

    name: str
    splits: dict[str, tuple[CaptionedImage, ...]]
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[CaptionedImage, ...]:
        """The images of one split; DataError when it is unknown, empty, or lacks images."""
        if name not in self.splits:
            there = ", ".join(self.splits) or "none"
            raise DataError(f"{self.name} has no split {name!r}; the splits there are: {there}")
        if not self.splits[name]:
            filled = ", ".join(key for key, images in self.splits.items() if images) or "none"
            raise DataError(f"split {name!r} of {self.name} is empty; splits with images: {filled}")
        missing = self.missing_images(name)
        if missing:
            raise DataError(
                f"split {name!r} of {self.name}: {len(missing)} of {len(self.splits[name])} "
                f"images are missing, the first: {missing[0].path}"
            )
        return self.splits[name]

    def missing_images(self, name: str) -> list[CaptionedImage]:
        """The images of a split whose file is not there."""
        return [image for image in self.splits[name] if not image.path.is_file()]

    def summary(self) -> str:
        """One line: the data's name and, for each split, how many images and captions it has."""
        counts = []
        for name, images in self.splits.items():
            captions = sum(len(image.captions) for image in images)
            counts.append(f"{name} {len(images)} images, {captions} captions")
        return f"{self.name}: {'; '.join(counts)}"


def assemble(
    *,
    name: str,
    source: Path | str,
    splits: Mapping[str, Iterable[CaptionedImage]],
    notes: Sequence[str] = (),
) -> CaptionData:
    """Check the splits of a format and make a CaptionData of them.

    Captions of fewer than two words are dropped, and images left without any, with notes. DataError
    (naming `source`, the file of the splits) when that empties a split, when a name or an image_id
    stands twice, or when two splits share an image.
    """
    before = {split: tuple(images) for split, images in splits.items()}
    for split, images in before.items():
        _check_unique(source, split, "image", [image.name for image in images])
        _check_unique(source, split, "image id", [image.image_id for image in images])
    _check_overlap(source, before)
    cleaned = {split: _without_short(images) for split, images in before.items()}
    for split, images in cleaned.items():
        if before[split] and not images:
            raise DataError(
                f"{source}: split {split!r} keeps no caption: none of its {len(before[split])} "
                "images has a caption of two words or more"
            )
    everything = [image for images in before.values() for image in images]
    return CaptionData(name, cleaned, (*notes, *_notes_on_short(everything)))


def count_words(caption: str) -> int:
    """How many of the caption's space-separated parts hold a letter or a digit."""
    # The common case first: a part that consists of letters and digits.
    return sum(part.isalnum() or any(map(str.isalnum, part)) for part in caption.split())


def duplicates(keys: Iterable[Key]) -> list[Key]:
    """The keys that come more than once, each once, in order."""
    seen: set[Key] = set()
    twice: dict[Key, None] = {}
    for key in keys:
        if key in seen:
            twice[key] = None
        seen.add(key)
    return list(twice)


def _without_short(images: Iterable[CaptionedImage]) -> tuple[CaptionedImage, ...]:
    kept = []
    for image in images:
        captions = tuple(filter(_TWO_WORDS.search, image.captions))
        if captions:
            whole = len(captions) == len(image.captions)
            kept.append(image if whole else replace(image, captions=captions))
    return tuple(kept)


def _notes_on_short(images: Sequence[CaptionedImage]) -> list[str]:
    short = [(i.name, c) for i in images for c in i.captions if not _TWO_WORDS.search(c)]
    told = [(name, one, count_words(one)) for name, one in short]
    bare = [image.name for image in images if not any(map(_TWO_WORDS.search, image.captions))]
    found = {
        "empty captions": [name for name, _, words in told if words == 0],
        "one-word captions": [f"{name}: {one!r}" for name, one, words in told if words == 1],
        "images left without a caption": bare,
    }
    return [f"dropped {len(n)} {what}, the first: {n[0]}" for what, n in found.items() if n]


def _check_unique(source: Path | str, split: str, what: str, keys: Sequence[Hashable]) -> None:
    if twice := duplicates(keys):
        raise DataError(
            f"{source}: split {split!r} holds {len(twice)} {what}s more than once, "
            f"the first: {twice[0]}; each may stand there once"
        )


def _check_overlap(source: Path | str, splits: Mapping[str, tuple[CaptionedImage, ...]]) -> None:
    names = {split: {image.name for image in images} for split, images in splits.items()}
    for first, second in combinations(names, 2):
        shared = [image.name for image in splits[first] if image.name in names[second]]
        if shared:
            raise DataError(
                f"{source}: splits {first!r} and {second!r} share {len(shared)} images, "
                f"the first: {shared[0]}; an image may be in one split only"
            )
