"""A language model's text on disk: documents (byte ranges of files) and their splits."""

import codecs
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from captioner.data.download import check_digests, download
from captioner.errors import DataError
from captioner.files import disk_errors

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
        with disk_errors(f"read {self.path}"), self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left and (block := file.read(min(_CHUNK, left))):
                left -= len(block)
                yield block

    def pieces(self) -> Iterator[str]:
        """The text, a megabyte at a time; DataError names the offset of a byte that is no UTF-8."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        at = self.start
        for block in chain(self.blocks(), [b""]):
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # error.object begins with what was left of the blocks before.
                offset = at + len(block) - len(error.object) + error.start
                byte = error.object[error.start]
                raise DataError(f"{self.path} is not UTF-8: byte {offset} is {byte:#04x}") from None
            at += len(block)
            yield text


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

    A file is cut by size, at a character or, with `whole_lines`, at a line. Of a folder, files
    named for their splits (ptb.train.txt, wiki.valid.tokens, test.txt) are taken as they are;
    otherwise every file below it that matches `pattern` is a document, and documents are drawn for
    the splits from `seed`. A fraction of 0 leaves a split out. DataError when a text, file or split
    is empty.
    """
    path = Path(path)
    fractions = {"dev": dev_fraction, "test": test_fraction}
    if path.is_file():
        return _cut(_document(path), fractions, whole_lines)
    if not path.is_dir():
        raise DataError(f"there is no text at {path}: expected a file or a folder")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if (named := _named_splits(path, files)) is not None:
        return named
    documents = [_document(file) for file in files if file.match(pattern)]
    if len(documents) == 1:
        return _cut(documents[0], fractions, whole_lines)
    return _draw_splits(documents, fractions, seed, f"{path} (files {pattern})")


def python_library(*, dev_fraction: float, test_fraction: float, seed: int = 0) -> Splits:
    """The modules of Python's own standard library, text that every installation has."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    documents = [_document(file) for file in sorted(folder.glob("*.py")) if file.stat().st_size]
    fractions = {"dev": dev_fraction, "test": test_fraction}
    return _draw_splits(documents, fractions, seed, str(folder))


def tiny_shakespeare(path: Path | str | None, *, cache_dir: Path | str) -> Path:
    """The file: `path`, checked against its sha256, or downloaded into `cache_dir`."""
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
    if several := next((paths for paths in named.values() if len(paths) > 1), None):
        raise DataError(
            f"{folder} has several files for one split: {', '.join(p.name for p in several)}"
        )
    return {split: [_document(named[split][0])] for split in SPLITS if split in named}


def _cut(document: Document, fractions: Mapping[str, float], whole_lines: bool) -> Splits:
    """One document cut in three; what a split leaves out begins the next one."""
    dev, test = fractions["dev"], fractions["test"]
    kept = (int(document.size * (1 - dev - test)), int(document.size * (1 - test)))
    first, second = (_next_break(document, document.start + end, whole_lines) for end in kept)
    if test == 0:
        second = document.stop
    ends = {"train": (document.start, first), "dev": (first, second)}
    ends["test"] = (second, document.stop)
    splits = {}
    for split, (start, stop) in ends.items():
        if fractions.get(split) == 0:
            continue
        if start >= stop:
            where = f"{document.path} has {document.size} bytes"
            raise DataError(f"{where}, which leaves none for the split {split!r}")
        splits[split] = [Document(document.path, start, stop)]
    return splits


def _next_break(document: Document, offset: int, whole_lines: bool) -> int:
    """The first offset at or after `offset` where a character or a line begins."""
    with document.path.open("rb") as file:
        file.seek(max(document.start, offset - 1))
        if whole_lines and offset > document.start:
            file.readline()
            return min(file.tell(), document.stop)
        file.seek(offset)
        following = file.read(4)
    inside = next((k for k, byte in enumerate(following) if byte & 0xC0 != 0x80), 0)
    return min(offset + inside, document.stop)


def _draw_splits(
    documents: list[Document], fractions: Mapping[str, float], seed: int, where: str
) -> Splits:
    """Whole documents for each split, until it has its fraction of the bytes."""
    if not documents:
        raise DataError(f"there is no text in {where}")
    drawn = documents.copy()
    random.Random(seed).shuffle(drawn)
    total = sum(document.size for document in documents)
    wanted = {split: fraction * total for split, fraction in fractions.items() if fraction}
    splits: Splits = {}
    for split, size in {**wanted, "train": float("inf")}.items():
        taken: list[Document] = []
        while drawn and sum(one.size for one in taken) < size:
            taken.append(drawn.pop())
        if not taken:
            raise DataError(f"{where}: {len(documents)} files leave none for the split {split!r}")
        splits[split] = sorted(taken, key=lambda one: one.path)
    return {split: splits[split] for split in SPLITS if split in splits}
