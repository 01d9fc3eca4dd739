"""Where a language model's text lies: files, the bytes of them that are read, and their splits."""

from __future__ import annotations

import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from captioner.data.download import check_digests, download
from captioner.errors import DataError

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# Penn Treebank: ptb.valid.txt. WikiText: wiki.valid.tokens. Others: valid.txt, text_val.txt.
SPLIT_NAMES = {"train": "train", "valid": "dev", "val": "dev", "dev": "dev", "test": "test"}
SPLITS = ("train", "dev", "test")
_LAYOUT = re.compile(r"(?:^|[._-])(train|valid|val|dev|test)(?:[._-]|$)")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Document:
    """The bytes `start` to `stop` of a file; the recurrent state does not outlive it."""

    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start

    def blocks(self) -> Iterator[bytes]:
        """The bytes, a megabyte at a time; DataError when the file cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                left = self.size
                while left and (block := file.read(min(_CHUNK, left))):
                    left -= len(block)
                    yield block
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error

    def pieces(self) -> Iterator[str]:
        """The text, a megabyte at a time; DataError names the offset of a byte that is no UTF-8."""
        rest, at = b"", self.start
        for block in self.blocks():
            data = rest + block
            whole = self._whole(data, at)
            yield data[:whole].decode("utf-8")
            rest, at = data[whole:], at + whole
        if rest:
            raise _not_utf8(self.path, at, rest[0])

    def _whole(self, data: bytes, at: int) -> int:
        """How many bytes of `data` are whole characters: the last may be cut by the block's end."""
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return error.start
            raise _not_utf8(self.path, at + error.start, data[error.start]) from None
        return len(data)


def _not_utf8(path: Path, offset: int, byte: int) -> DataError:
    return DataError(f"{path} is not UTF-8: byte {offset} is {byte:#04x}")


Splits = dict[str, list[Document]]


def find_text(
    path: Path | str,
    *,
    pattern: str,
    dev_fraction: float,
    test_fraction: float,
    seed: int = 0,
    whole_lines: bool = False,
) -> Splits:
    """The documents of a text, in the splits train, dev and test.

    A file is cut by size, the first part to train on, at a character or, with `whole_lines`, at a
    line. Of a folder, files named for their splits (ptb.train.txt, wiki.valid.tokens, test.txt)
    are taken as they are; otherwise every file below it that matches `pattern` is one document,
    and whole files are dealt out, drawn from `seed`. A fraction of 0 leaves a split out. DataError
    when nothing is there, a file is empty, or a split would be.
    """
    path = Path(path)
    if path.is_file():
        splits = _cut(_document(path), dev_fraction, test_fraction, whole_lines)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        splits = _named_splits(path, files) or _dealt_out(
            [_document(file) for file in files if file.match(pattern)],
            dev_fraction, test_fraction, seed, f"{path} (files {pattern})", whole_lines,
        )  # fmt: skip
    else:
        raise DataError(f"there is no text at {path}: expected a file or a folder")
    return splits


def python_library(*, dev_fraction: float, test_fraction: float, seed: int = 0) -> Splits:
    """The modules of Python's own standard library, text that every installation has."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [_document(file) for file in sorted(folder.glob("*.py")) if file.stat().st_size]
    return _dealt_out(files, dev_fraction, test_fraction, seed, str(folder), False)


def tiny_shakespeare(path: Path | str | None, *, cache_dir: Path | str) -> Path:
    """The file: `path`, held against its checksum, or downloaded into `cache_dir`."""
    if path is None:
        target = Path(cache_dir) / "tiny_shakespeare.txt"
        return download(SHAKESPEARE_URL, target, sha256=SHAKESPEARE_SHA256)
    if not Path(path).is_file():
        raise DataError(f"there is no text at {path}: expected the file of tiny Shakespeare")
    check_digests(Path(path), sha256=SHAKESPEARE_SHA256)
    return Path(path)


def _document(path: Path) -> Document:
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path} is empty: there is no text to read")
    with path.open("rb") as file:
        start = 3 if file.read(3) == b"\xef\xbb\xbf" else 0  # a byte order mark
    return Document(path, start, size)


def _named_splits(folder: Path, files: Iterable[Path]) -> Splits | None:
    """Splits by file names, where train and dev are named once each; None otherwise."""
    named: dict[str, list[Path]] = {}
    for file in files:
        for name in set(_LAYOUT.findall(file.name.lower())) if file.parent == folder else ():
            named.setdefault(SPLIT_NAMES[name], []).append(file)
    if not {"train", "dev"} <= named.keys():
        return None
    several = next((paths for paths in named.values() if len(paths) > 1), None)
    if several:
        raise DataError(
            f"{folder} has several files for one split: {', '.join(p.name for p in several)}"
        )
    return {split: [_document(named[split][0])] for split in SPLITS if split in named}


def _cut(document: Document, dev: float, test: float, whole_lines: bool) -> Splits:
    """One document cut in three; what a split leaves out begins the next one."""
    path, size = document.path, document.size
    ends = [int(size * (1 - dev - test)), int(size * (1 - test))]
    first, second = (_next_break(document, document.start + end, whole_lines) for end in ends)
    if test == 0:
        second = document.stop
    bounds = {
        "train": (document.start, first), "dev": (first, second), "test": (second, document.stop)
    }  # fmt: skip
    wanted = {"train": True, "dev": dev > 0, "test": test > 0}
    for split, (start, stop) in bounds.items():
        if wanted[split] and start >= stop:
            raise DataError(f"{path} has {size} bytes, which leaves none for the split {split!r}")
    return {s: [Document(path, *bounds[s])] for s in SPLITS if wanted[s]}


def _next_break(document: Document, offset: int, whole_lines: bool) -> int:
    """The first place at or after `offset` where a character or a line begins."""
    with document.path.open("rb") as file:
        file.seek(max(document.start, offset - 1))
        if whole_lines and offset > document.start:
            file.readline()
            return min(file.tell(), document.stop)
        file.seek(offset)
        following = file.read(4)
    inside = next((k for k, byte in enumerate(following) if byte & 0xC0 != 0x80), 0)
    return min(offset + inside, document.stop)


def _dealt_out(
    documents: list[Document], dev: float, test: float, seed: int, where: str, whole_lines: bool
) -> Splits:
    """Whole documents to each split, until it has its share of the bytes."""
    if not documents:
        raise DataError(f"there is no text in {where}")
    if len(documents) == 1:
        return _cut(documents[0], dev, test, whole_lines)
    drawn = documents.copy()
    random.Random(seed).shuffle(drawn)
    total = sum(document.size for document in documents)
    shares = {"dev": dev * total, "test": test * total, "train": float("inf")}
    splits: Splits = {}
    for split, share in shares.items():
        if share == 0:
            continue
        taken: list[Document] = []
        while drawn and sum(one.size for one in taken) < share:
            taken.append(drawn.pop())
        if not taken:
            raise DataError(f"{where}: {len(documents)} files leave none for the split {split!r}")
        splits[split] = sorted(taken, key=lambda one: one.path)
    return {split: splits[split] for split in SPLITS if split in splits}
