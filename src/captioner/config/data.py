"""Schemas of the data: where captions and texts come from, and their vocabulary."""

from dataclasses import dataclass

from omegaconf import MISSING

from captioner.checks import each_in_range, in_range, one_of
from captioner.errors import ConfigError

SPLITS = ("train", "dev", "test")
TEXT_SOURCES = ("path", "python", "tiny_shakespeare")
UNITS = ("character", "byte", "word")
RARE = ("unk", "drop")


@dataclass
class DataConfig:
    """Captioned images; `kind` is their format (each has a schema below)."""

    kind: str = MISSING


@dataclass
class ScenesData(DataConfig):
    """Images that the package draws itself: their number in each split, their size in pixels."""

    kind: str = "scenes"
    root: str = ".cache/scenes"
    train: int = 4000
    dev: int = 300
    test: int = 300
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        each_in_range("data", self, "train dev test", 1)
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
    """Any Karpathy JSON (Flickr8k, Flickr30k, COCO) and the folder of its images."""

    kind: str = "karpathy"
    json: str = MISSING
    images: str = MISSING
    restval_in_train: bool = True


@dataclass
class CocoData(DataConfig):
    """COCO caption annotations, a file and a folder of images for each split (test may be null)."""

    kind: str = "coco"
    train_annotations: str = MISSING
    train_images: str = MISSING
    dev_annotations: str = MISSING
    dev_images: str = MISSING
    test_annotations: str | None = None
    test_images: str | None = None


def _leave_some(taken: float) -> None:
    if taken >= 1:
        raise ConfigError("data.dev_fraction + data.test_fraction must leave some for training")


@dataclass
class FolderData(DataConfig):
    """A folder of images with a CSV or JSON Lines file (image, caption, perhaps split)."""

    kind: str = "folder"
    captions: str = MISSING
    images: str = MISSING
    dev_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        each_in_range("data", self, "dev_fraction test_fraction", 0, 1)
        _leave_some(self.dev_fraction + self.test_fraction)


@dataclass
class TextData(DataConfig):
    """Text for a language model, with no images: encoder=none.

    source: path (a UTF-8 file, or a folder: its files named train, valid and test, otherwise all
    that match pattern, each a document), python (the standard library's own source), or
    tiny_shakespeare (at path, or downloaded). unit: character, byte or word, of which
    vocabulary.min_count keeps the frequent. The fractions are the shares of the dev and test splits
    where files do not say; seed decides which files of a folder go to which split.
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
        _leave_some(self.dev_fraction + self.test_fraction)
        if self.source == "path" and not self.path:
            raise ConfigError("data.path must name a text file or a folder of them")


KINDS = (ScenesData, Flickr8kData, KarpathyData, CocoData, FolderData, TextData)


@dataclass
class VocabularyConfig:
    """Which words are kept and how long a training caption may be (in words)."""

    min_count: int = 5
    rare: str = "unk"
    max_length: int = 50

    def __post_init__(self) -> None:
        each_in_range("vocabulary", self, "min_count max_length", 1)
        one_of("vocabulary.rare", self.rare, RARE)
