"""Pictures with their captions, in named splits: what every data format is turned into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from captioner.errors import DataError


@dataclass(frozen=True)
class CaptionedImage:
    """One picture: its name (unique in the data), its file, its raw captions, its id in scores."""

    name: str
    path: Path
    captions: tuple[str, ...]
    image_id: int | str


@dataclass(frozen=True)
class CaptionData:
    """The splits of one data set, with notes on everything dropped or guessed on the way."""

    name: str
    splits: dict[str, tuple[CaptionedImage, ...]]
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[CaptionedImage, ...]:
        """The pictures of one split; DataError when it is unknown, empty, or lacks pictures."""
        if name not in self.splits:
            there = ", ".join(self.splits) or "none"
            raise DataError(f"{self.name} has no split {name!r}; the splits there are: {there}")
        if not self.splits[name]:
            filled = ", ".join(key for key, images in self.splits.items() if images) or "none"
            raise DataError(
                f"split {name!r} of {self.name} is empty; splits with pictures: {filled}"
            )
        self.check_pictures(name)
        return self.splits[name]

    def missing_pictures(self, name: str) -> list[CaptionedImage]:
        """The pictures of a split whose file is not there."""
        return [image for image in self.splits[name] if not image.path.is_file()]

    def check_pictures(self, name: str) -> None:
        """DataError saying how many pictures of the split have no file, and which is the first."""
        missing = self.missing_pictures(name)
        if missing:
            raise DataError(
                f"split {name!r} of {self.name}: {len(missing)} of {len(self.splits[name])} "
                f"pictures are missing, the first: {missing[0].path}"
            )

    def summary(self) -> str:
        """One line: the data's name and, for each split, how many pictures and captions it has."""
        counts = []
        for name, images in self.splits.items():
            captions = sum(len(image.captions) for image in images)
            counts.append(f"{name} {len(images)} pictures, {captions} captions")
        return f"{self.name}: {'; '.join(counts)}"


def assemble(
    *,
    name: str,
    source: Path | str,
    splits: Mapping[str, Iterable[CaptionedImage]],
    notes: Sequence[str] = (),
) -> CaptionData:
    """Check the splits of a format and make a CaptionData of them.

    Captions of fewer than two words are dropped, and pictures left without any; notes say how many
    and the first. DataError (naming `source`, the file the splits come from) when that empties a
    split, when a name or an image_id stands twice, or when two splits share a picture.
    """
    before = {split: tuple(images) for split, images in splits.items()}
    for split, images in before.items():
        _check_unique(source, split, images)
    _check_overlap(source, before)
    cleaned = {split: _without_short(images) for split, images in before.items()}
    for split, images in cleaned.items():
        if before[split] and not images:
            raise DataError(
                f"{source}: split {split!r} keeps no caption: none of its {len(before[split])} "
                "pictures has a caption of two words or more"
            )
    everything = [image for images in before.values() for image in images]
    return CaptionData(name, cleaned, (*notes, *_notes_on_short(everything)))


def count_words(caption: str) -> int:
    """How many of the caption's space-separated parts hold a letter or a digit."""
    return sum(any(map(str.isalnum, part)) for part in caption.split())


def _without_short(images: Iterable[CaptionedImage]) -> tuple[CaptionedImage, ...]:
    kept = []
    for image in images:
        captions = tuple(caption for caption in image.captions if count_words(caption) > 1)
        if captions:
            kept.append(image if captions == image.captions else replace(image, captions=captions))
    return tuple(kept)


def _notes_on_short(images: Iterable[CaptionedImage]) -> list[str]:
    empty: list[str] = []
    one_word: list[str] = []
    bare: list[str] = []
    for image in images:
        lengths = [count_words(caption) for caption in image.captions]
        empty += [image.name for length in lengths if length == 0]
        one_word += [
            f"{image.name}: {caption!r}"
            for caption, length in zip(image.captions, lengths, strict=True)
            if length == 1
        ]
        if max(lengths, default=0) < 2:
            bare.append(image.name)
    found = [("empty captions", empty), ("one-word captions", one_word)]
    found.append(("pictures left without a caption", bare))
    return [f"dropped {len(names)} {what}, the first: {names[0]}" for what, names in found if names]


def _check_unique(source: Path | str, split: str, images: Sequence[CaptionedImage]) -> None:
    for what, keys in (
        ("picture", [image.name for image in images]),
        ("image id", [image.image_id for image in images]),
    ):
        twice = duplicates(keys)
        if twice:
            raise DataError(
                f"{source}: split {split!r} holds {len(twice)} {what}s more than once, "
                f"the first: {twice[0]}; each may stand there once"
            )


def duplicates(keys: Iterable[object]) -> list[object]:
    """The keys that come more than once, each once, in order."""
    seen: set[object] = set()
    twice: dict[object, None] = {}
    for key in keys:
        if key in seen:
            twice[key] = None
        seen.add(key)
    return list(twice)


def _check_overlap(source: Path | str, splits: Mapping[str, tuple[CaptionedImage, ...]]) -> None:
    names = {split: {image.name for image in images} for split, images in splits.items()}
    for first, second in combinations(names, 2):
        shared = [image.name for image in splits[first] if image.name in names[second]]
        if shared:
            raise DataError(
                f"{source}: splits {first!r} and {second!r} share {len(shared)} pictures, "
                f"the first: {shared[0]}; a picture may be in one split only"
            )
