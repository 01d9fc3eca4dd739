"""Schemas of the data: where captions and texts come from, and their vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from captioner.checks import in_range, one_of
from captioner.data.text.codec import UNITS
from captioner.data.vocabulary import RARE
from captioner.errors import ConfigError

SPLITS = ("train", "dev", "test")
TEXT_SOURCES = ("path", "python", "tiny_shakespeare")


@dataclass
class DataConfig:
    """Captioned pictures; `kind` says in which format (each has a schema below)."""

    kind: str = MISSING


@dataclass
class ScenesData(DataConfig):
    """Pictures that the package draws itself: numbers of pictures a split, side in pixels."""

    kind: str = "scenes"
    root: str = ".cache/scenes"
    train: int = 4000
    dev: int = 300
    test: int = 300
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for split in SPLITS:
            in_range(f"data.{split}", getattr(self, split), 1)
        in_range("data.size", self.size, 32, 1024)


@dataclass
class Flickr8kData(DataConfig):
    """Flickr8k in the folder `root`; layout auto, official, kaggle or karpathy."""

    kind: str = "flickr8k"
    root: str = MISSING
    layout: str = "auto"

    def __post_init__(self) -> None:
        one_of("data.layout", self.layout, ("auto", "official", "kaggle", "karpathy"))


@dataclass
class KarpathyData(DataConfig):
    """Any Karpathy JSON (Flickr8k, Flickr30k, COCO) and the folder of its pictures."""

    kind: str = "karpathy"
    json: str = MISSING
    images: str = MISSING
    restval_in_train: bool = True


@dataclass
class CocoData(DataConfig):
    """COCO caption annotations, a file and a folder of pictures a split (test may be null)."""

    kind: str = "coco"
    train_annotations: str = MISSING
    train_images: str = MISSING
    dev_annotations: str = MISSING
    dev_images: str = MISSING
    test_annotations: str | None = None
    test_images: str | None = None


@dataclass
class FolderData(DataConfig):
    """A folder of pictures with a CSV or JSON Lines file (image, caption, perhaps split)."""

    kind: str = "folder"
    captions: str = MISSING
    images: str = MISSING
    dev_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("data.dev_fraction", self.dev_fraction, 0, 1)
        in_range("data.test_fraction", self.test_fraction, 0, 1)
        if self.dev_fraction + self.test_fraction >= 1:
            raise ConfigError("data.dev_fraction + data.test_fraction must leave some for training")


@dataclass
class TextData(DataConfig):
    """Text for a language model, with no pictures: encoder=none.

    source: path (a UTF-8 file, or a folder: its files named train, valid and test, or else whatever
    matches pattern, each a document), python (the standard library's own source), or
    tiny_shakespeare (at path, or downloaded). unit: character, byte or word, of which
    vocabulary.min_count keeps the frequent. The fractions are the shares of the dev and test splits
    where files do not say; seed deals out a folder's files.
    """

    kind: str = "text"
    source: str = "path"
    path: str | None = None
    unit: str = "character"
    pattern: str = "*.txt"
    dev_fraction: float = 0.1
    test_fraction: float = 0.0
    seed: int = 0
    cache_dir: str = ".cache/text"

    def __post_init__(self) -> None:
        one_of("data.source", self.source, TEXT_SOURCES)
        one_of("data.unit", self.unit, UNITS)
        in_range("data.dev_fraction", self.dev_fraction, 0.001, 0.9)
        in_range("data.test_fraction", self.test_fraction, 0, 0.9)
        if self.dev_fraction + self.test_fraction >= 1:
            raise ConfigError("data.dev_fraction + data.test_fraction must leave some for training")
        if self.source == "path" and not self.path:
            raise ConfigError("data.path must name a text file or a folder of them")


@dataclass
class VocabularyConfig:
    """Which words are kept and how long a training caption may be (in words)."""

    min_count: int = 5
    rare: str = "unk"
    max_length: int = 50

    def __post_init__(self) -> None:
        in_range("vocabulary.min_count", self.min_count, 1)
        in_range("vocabulary.max_length", self.max_length, 1)
        one_of("vocabulary.rare", self.rare, RARE)
