"""Schemas of the data: where captions and texts come from, and their vocabulary."""

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from captioner.config.ranges import (
    COUNT,
    PATH,
    SEED,
    SHARE,
    TEXT,
    Checked,
    Choice,
    Range,
    setting,
)
from captioner.errors import ConfigError

SPLITS = ("train", "dev", "test")
LAYOUTS = ("auto", "official", "kaggle", "karpathy")
TEXT_SOURCES = ("path", "python", "tiny_shakespeare")
UNITS = ("character", "byte", "word", "bpe")
RARE = ("unk", "drop")


@dataclass
class DataConfig(Checked):
    """Captioned images; `kind` is their format (each has a schema below)."""

    group: ClassVar[str] = "data"

    kind: str = setting(MISSING, TEXT)


@dataclass
class ScenesData(DataConfig):
    """Images that the package draws itself: their number in each split, their size in pixels."""

    kind: str = setting("scenes", TEXT)
    root: str = setting(".cache/scenes", PATH)
    train: int = setting(4000, COUNT)
    dev: int = setting(300, COUNT)
    test: int = setting(300, COUNT)
    size: int = setting(64, Range(32, 1024))
    seed: int = setting(0, SEED)


@dataclass
class Flickr8kData(DataConfig):
    """Flickr8k in the folder `root`; layout auto, official, kaggle or karpathy."""

    kind: str = setting("flickr8k", TEXT)
    root: str = setting(MISSING, PATH)
    layout: str = setting("auto", Choice(LAYOUTS))


@dataclass
class KarpathyData(DataConfig):
    """Any Karpathy JSON (Flickr8k, Flickr30k, COCO) and the folder of its images."""

    kind: str = setting("karpathy", TEXT)
    json: str = setting(MISSING, PATH)
    images: str = setting(MISSING, PATH)
    restval_in_train: bool = True


@dataclass
class CocoData(DataConfig):
    """COCO caption annotations, a file and a folder of images for each split (test may be null)."""

    kind: str = setting("coco", TEXT)
    train_annotations: str = setting(MISSING, PATH)
    train_images: str = setting(MISSING, PATH)
    dev_annotations: str = setting(MISSING, PATH)
    dev_images: str = setting(MISSING, PATH)
    test_annotations: str | None = setting(None, PATH)
    test_images: str | None = setting(None, PATH)


def _leave_some(taken: float) -> None:
    if taken >= 1:
        raise ConfigError("data.dev_fraction + data.test_fraction must leave some for training")


@dataclass
class FolderData(DataConfig):
    """A folder of images with a CSV or JSON Lines file (image, caption, perhaps split)."""

    kind: str = setting("folder", TEXT)
    captions: str = setting(MISSING, PATH)
    images: str = setting(MISSING, PATH)
    dev_fraction: float = setting(0.1, SHARE)
    test_fraction: float = setting(0.1, SHARE)
    seed: int = setting(0, SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        _leave_some(self.dev_fraction + self.test_fraction)


@dataclass
class TextData(DataConfig):
    """Text for a language model, with no images: encoder=none.

    source: path (a UTF-8 file, or a folder: its files named train, valid and test, otherwise all
    that match pattern, each a document), python (the standard library's own source), or
    tiny_shakespeare (at path, or downloaded). unit: character, byte, word or bpe (byte pairs), of
    which vocabulary.min_count keeps the frequent. The fractions are the shares of the dev and test
    splits where files do not say; seed decides which files of a folder go to which split.
    """

    kind: str = setting("text", TEXT)
    source: str = setting("path", Choice(TEXT_SOURCES))
    path: str | None = setting(None, PATH)
    unit: str = setting("character", Choice(UNITS))
    pattern: str = setting("*.txt", PATH)
    dev_fraction: float = setting(0.1, Range(0.001, 0.9))
    test_fraction: float = setting(0.0, Range(0, 0.9))
    seed: int = setting(0, SEED)
    cache_dir: str = setting(".cache/text", PATH)

    def __post_init__(self) -> None:
        super().__post_init__()
        _leave_some(self.dev_fraction + self.test_fraction)
        if self.source == "path" and not self.path:
            raise ConfigError("data.path must name a text file or a folder of them")


KINDS = (ScenesData, Flickr8kData, KarpathyData, CocoData, FolderData, TextData)


@dataclass
class VocabularyConfig(Checked):
    """Which words are kept and how long a training caption may be (in words); of data.unit=bpe how
    many tokens there are at most, its 256 bytes among them (null: 4096).
    """

    group: ClassVar[str] = "vocabulary"

    min_count: int = setting(5, COUNT)
    rare: str = setting("unk", Choice(RARE))
    max_length: int = setting(50, COUNT)
    size: int | None = setting(None, Range(257, 10**6))
