"""A text as token ids in memory-mapped files, made once for a fingerprint of text and settings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from captioner.data.text.codec import TextCodec, build_vocabulary, unit_name
from captioner.data.text.files import Document
from captioner.data.vocabulary import Vocabulary
from captioner.errors import DataError
from captioner.files import (
    atomic_write,
    disk_errors,
    read_json,
    refuse_special,
    take_lock,
    write_json,
)
from captioner.restore import Count, Size, restore

VERSION = 2  # of the files' format


@dataclass(frozen=True)
class TokenStream:
    """A split's documents end to end, `<bos>` before each: `tokens` [N], mapped from its file, and
    how many of the text's characters and UTF-8 bytes and of `<unk>` there are."""

    tokens: np.ndarray
    documents: int
    characters: int
    bytes: int
    unknown: int


@dataclass(frozen=True)
class TextCorpus:
    """The splits of a text, encoded."""

    name: str
    codec: TextCodec
    streams: dict[str, TokenStream]

    def split(self, name: str) -> TokenStream:
        """One split; DataError when it is not there."""
        if name not in self.streams:
            there = ", ".join(self.streams)
            raise DataError(f"{self.name} has no split {name!r}; the splits there are: {there}")
        return self.streams[name]

    def summary(self) -> str:
        """One line: documents, tokens and unknown ones of every split."""
        unit = unit_name(self.codec.unit)
        return f"{self.name}: " + "; ".join(
            f"{name} {len(s.tokens) - s.documents:,} {unit}s in {s.documents} documents"
            f" ({s.unknown} unknown)"
            for name, s in self.streams.items()
        )


def encode_corpus(
    splits: Mapping[str, Sequence[Document]],
    *,
    name: str,
    unit: str,
    min_count: int,
    cache_dir: Path | str,
    size: int | None = None,
    vocabulary: Vocabulary | None = None,
) -> TextCorpus:
    """Encode every split, or map the files of an earlier call with the same text and settings.

    Of several processes one encodes, and the others wait for it. The vocabulary is that of the
    train split unless one is given, its settings as for `build_vocabulary`. DataError when a file
    cannot be read, is not UTF-8 (unit byte takes any), or leaves no vocabulary.
    """
    settings = (unit, min_count, *(() if size is None else (size,)))  # as before there was a size
    folder = Path(cache_dir) / _fingerprint(splits, settings, vocabulary)
    content = folder / "text.json"
    if not content.exists():
        with take_lock(folder / "lock", wait=True):
            if not content.exists():  # no other process has written it meanwhile
                if vocabulary is None:
                    vocabulary = build_vocabulary(
                        splits["train"], unit=unit, min_count=min_count, size=size
                    )
                _encode(folder, splits, TextCodec(unit, vocabulary))
    return _mapped(folder, name, unit)


def _encode(folder: Path, splits: Mapping[str, Sequence[Document]], codec: TextCodec) -> None:
    dtype = np.dtype(np.min_scalar_type(len(codec.vocabulary) - 1))
    counts = {s: _write(folder / f"{s}.bin", d, codec, dtype) for s, d in splits.items()}
    content = {"vocabulary": codec.vocabulary.to_json(), "dtype": dtype.name, "splits": counts}
    write_json(folder / "text.json", content)  # last: it says that the rest is whole


def _write(
    path: Path, documents: Sequence[Document], codec: TextCodec, dtype: np.dtype
) -> dict[str, int]:
    """One split's tokens as raw numbers; what `TokenStream` says of it, and their count."""
    counts = dict.fromkeys(("tokens", "characters", "bytes", "unknown"), 0)
    counts["documents"] = len(documents)
    bos = np.array([codec.vocabulary.bos])
    with atomic_write(path) as file:
        for document in documents:
            for ids in chain([bos], codec.encode_document(document)):
                file.write(ids.astype(dtype).tobytes())
                counts["tokens"] += len(ids)
                counts["unknown"] += int((ids == codec.vocabulary.unk).sum())
            for block in document.blocks():  # UTF-8 characters that begin in it
                first = np.frombuffer(block, np.uint8) & 0xC0 != 0x80
                counts["characters"] += int(first.sum())
                counts["bytes"] += len(block)
    return counts


def _mapped(folder: Path, name: str, unit: str) -> TextCorpus:
    path = folder / "text.json"
    try:
        content: _Content = restore(_Content, read_json(path), str(path))
        vocabulary = Vocabulary.from_json(content["vocabulary"], f"{path}: vocabulary")
        codec, dtype = TextCodec(unit, vocabulary), np.dtype(content["dtype"])
        streams = {
            split: _stream(folder / f"{split}.bin", dtype, counts, len(vocabulary))
            for split, counts in content["splits"].items()
        }
    except DataError as error:
        raise DataError(f"{error}; delete {folder}, which is then made anew") from error
    return TextCorpus(name, codec, streams)


class _Counts(TypedDict):
    documents: Count
    tokens: Size
    characters: Count
    bytes: Count
    unknown: Count


class _Content(TypedDict):
    """What text.json holds."""

    vocabulary: str
    dtype: Literal["uint8", "uint16", "uint32"]
    splits: dict[str, _Counts]


def _stream(path: Path, dtype: np.dtype, counts: _Counts, vocabulary: int) -> TokenStream:
    """A split's tokens, each of which is in the vocabulary: an embedding has no other rows."""
    with disk_errors(f"read {path}"):
        refuse_special(path)
        size = path.stat().st_size
    expected = counts["tokens"] * dtype.itemsize
    if size != expected:
        raise DataError(f"{path} has {size} bytes, expected {expected}")
    tokens = np.memmap(path, dtype=dtype, mode="r")
    if (highest := int(tokens.max())) >= vocabulary:
        raise DataError(f"{path} holds the token {highest}, expected less than {vocabulary}")
    of_text = {key: counts[key] for key in ("documents", "characters", "bytes", "unknown")}
    return TokenStream(tokens, **of_text)


def _fingerprint(
    splits: Mapping[str, Sequence[Document]],
    settings: Sequence[object],
    vocabulary: Vocabulary | None,
) -> str:
    """Of files, their sizes and dates (a text may be too large to read for this), and settings."""

    def identity(one: Document) -> tuple[str, int, int, int]:
        return str(one.path.resolve()), one.start, one.stop, one.path.stat().st_mtime_ns

    files = {split: list(map(identity, documents)) for split, documents in splits.items()}
    given = None if vocabulary is None else vocabulary.to_json()
    everything = json.dumps([VERSION, *settings, given, files])
    return hashlib.sha256(everything.encode()).hexdigest()[:20]
