"""Captions as ids, encoded once and kept beside the features: a later run reads them at once.

A file of the cache is named by a hash of all that decides its content: the captions themselves, the
settings, the code that splits and counts words, and Python's tables of Unicode. So it is never out
of date, whatever changes; a damaged one is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from captioner.data.captions import CaptionedImage
from captioner.data.tokenize import tokenize
from captioner.data.vocabulary import Vocabulary
from captioner.errors import DataError
from captioner.files import atomic_write

log = logging.getLogger(__name__)
# Whose code decides what a caption's ids are.
_CODE = ("tokenize.py", "vocabulary.py", "encoded.py")


@dataclass(frozen=True)
class EncodedCaptions:
    """The captions of a split that have a word of the vocabulary, end to end, without <bos> and
    <eos>: `tokens` [sum of lengths], `lengths` [n], and of each its image, `image_rows` [n], all
    int64; `skipped` [] how many captions have no such word."""

    tokens: np.ndarray
    lengths: np.ndarray
    image_rows: np.ndarray
    skipped: np.ndarray


def encode_captions(
    images: Sequence[CaptionedImage], vocabulary: Vocabulary, *, max_length: int
) -> EncodedCaptions:
    """The captions of `images` in order, each cut at `max_length` words.

    Raises DataError when none has a word of the vocabulary.
    """
    encoded = [
        (row, vocabulary.encode(tokenize(caption))[:max_length])
        for row, image in enumerate(images)
        for caption in image.captions
    ]
    kept = [(row, ids) for row, ids in encoded if ids]
    if not kept:
        raise DataError(f"none of {len(encoded)} captions has a word of the vocabulary")
    return EncodedCaptions(
        tokens=np.array([token for _, ids in kept for token in ids], np.int64),
        lengths=np.array([len(ids) for _, ids in kept], np.int64),
        image_rows=np.array([row for row, _ in kept], np.int64),
        skipped=np.array(len(encoded) - len(kept), np.int64),
    )


def encode_splits(
    splits: Mapping[str, Sequence[CaptionedImage]],
    *,
    min_count: int,
    rare: str,
    max_length: int,
    cache_dir: Path | str,
) -> tuple[Vocabulary, dict[str, EncodedCaptions]]:
    """The vocabulary of the split "train" and the captions of all splits, from the folder
    `captions` in `cache_dir` where they are there already.

    `min_count` and `rare` as for `Vocabulary.build`, errors as there and in `encode_captions`. A
    cache that cannot be written is left alone.
    """
    settings = {"min_count": min_count, "rare": rare, "max_length": max_length}
    path = Path(cache_dir) / "captions" / f"{_key(splits, settings)[:32]}.npz"
    found = _read(path, splits)
    if found is not None:
        return found
    words = (tokenize(text) for image in splits["train"] for text in image.captions)
    vocabulary = Vocabulary.build(words, min_count=min_count, rare=rare)
    encoded = {
        name: encode_captions(images, vocabulary, max_length=max_length)
        for name, images in splits.items()
    }
    _write(path, vocabulary, encoded)
    return vocabulary, encoded


def _key(splits: Mapping[str, Sequence[CaptionedImage]], settings: Mapping[str, object]) -> str:
    """A sha256 (hex) of all that decides what the file holds."""
    here = Path(__file__).parent
    code = [hashlib.sha256((here / name).read_bytes()).hexdigest() for name in _CODE]
    captions = {name: [image.captions for image in images] for name, images in splits.items()}
    decides = [settings, code, unicodedata.unidata_version, captions]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _write(path: Path, vocabulary: Vocabulary, encoded: Mapping[str, EncodedCaptions]) -> None:
    text = np.frombuffer(vocabulary.to_json().encode(), np.uint8)
    arrays = {f"{split}.{k}": v for split, one in encoded.items() for k, v in vars(one).items()}
    try:
        with atomic_write(path) as handle:
            np.savez(handle, vocabulary=text, **arrays)
    except DataError as error:
        log.info("encoded captions are not kept for later runs: %s", error)


def _read(
    path: Path, splits: Mapping[str, object]
) -> tuple[Vocabulary, dict[str, EncodedCaptions]] | None:
    """What a file holds; None where there is none, or a damaged one, which the log says."""
    if not path.exists():
        return None
    names = [one.name for one in fields(EncodedCaptions)]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            vocabulary = Vocabulary.from_json(arrays["vocabulary"].tobytes().decode())
            encoded = {
                split: EncodedCaptions(**{name: arrays[f"{split}.{name}"] for name in names})
                for split in splits
            }
    except (DataError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("the encoded captions in %s are damaged and made anew: %s", path, error)
        return None
    return vocabulary, encoded
