"""The feature cache: what a frozen encoder makes of every picture, computed once and kept on disk.

A cache is a folder named after a hash of the encoder and the pictures, so that a changed picture or
encoder finds another folder and never a stale one:

    features.npy  [n, R, F], read through a memory map
    done.npy      [n] uint8, 1 once the row above is on the disk
    meta.json     what the folder is for, and the batch size that its rows were computed with
    lock          held by the process that computes

Letters: n images, B images of a batch, R regions (1 when pooled), F image feature, S image side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from captioner.errors import DataError, ImageError, NumericsError
from captioner.features.encoding import Encoded, Images
from captioner.features.store import FeatureStore, load_features
from captioner.files import atomic_write, read_json, write_json

__all__ = ["FeatureStore", "extract_features", "load_features"]

_log = logging.getLogger(__name__)
_FORMAT = 1


def extract_features(
    *,
    key: str,
    encoded: Callable[[Sequence[range], Images], Encoded],
    shape: tuple[int, int],
    images: Images,
    cache_dir: Path | str,
    batch_size: int = 32,
    dtype: str = "float32",
    progress: bool = True,
) -> FeatureStore:
    """Features of all `images` (name, path), from the cache where they are there already.

    `key` stands for everything that decides a picture's features (the encoder's fingerprint);
    `encoded` makes them, [B, R, F] with `shape` = (R, F) for each block of rows in order
    (`encoded_blocks`, `encoded_ahead`); `dtype`, float32 or float16, is the file's. A kill loses at
    most the blocks that `encoded` has in hand; what is computed after it has the same bits as
    without it. A second process waits for the first.
    Raises ImageError naming an unreadable picture (the finished rows are kept), DataError for a
    cache that cannot be written, NumericsError for features that are not finite.
    """
    if dtype not in ("float32", "float16"):
        raise DataError(f"features are kept as float32 or float16, not as {dtype}")
    if not images:
        raise DataError("there are no pictures to extract features from")
    names = [name for name, _ in images]
    if len(set(names)) != len(names):
        twice = next(name for row, name in enumerate(names) if name in names[:row])
        raise DataError(f"the image name {twice} stands twice in the list of pictures")
    identity = {"format": _FORMAT, "encoder": key, "shape": list(shape), "dtype": dtype}
    identity["pictures"] = _picture_set(images)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    array_shape = (len(images), *shape)
    cache = _Cache(Path(cache_dir) / digest[:16], identity, array_shape, np.dtype(dtype))
    if not cache.complete():
        with cache.lock():
            batch_size = cache.open(batch_size)
            _fill(cache, images, encoded, batch_size, progress)
    return FeatureStore(names, cache.features())


def _picture_set(images: Images) -> str:
    """A hash of the names and of each file's size and times.

    The time of the last change of the inode is among them: unlike the file's own time, a copying
    tool cannot set it back, so that a picture replaced by another of the same size is noticed.
    """
    digest = hashlib.sha256()
    for name, path in images:
        try:
            stat = Path(path).stat()
        except OSError as error:
            raise ImageError(f"cannot read the picture {path}: {error.strerror}") from error
        line = [name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Cache:
    """The folder of one cache. Its files are written with plain writes, never through the memory
    map, because a full disk is then an error and not the end of the process."""

    folder: Path
    identity: dict[str, Any]
    shape: tuple[int, int, int]  # n, R, F
    dtype: np.dtype

    def complete(self) -> bool:
        """Whether every row is there and may be trusted."""
        return self._batch_size() is not None and bool(self.done().all())

    def features(self) -> np.ndarray:
        """[n, R, F], memory-mapped, read only."""
        return np.load(self.folder / "features.npy", mmap_mode="r", allow_pickle=False)

    def done(self) -> np.ndarray:
        """[n] bool, a copy."""
        return np.load(self.folder / "done.npy", allow_pickle=False) == 1

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Wait until this process alone may compute here. The lock goes with the process, not
        with its reading workers: nothing that a killed run leaves behind holds it."""
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / "lock").open("wb")
        with handle:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("another process extracts these features; waiting for %s", self.folder)
                fcntl.lockf(handle, fcntl.LOCK_EX)
            yield

    def open(self, batch_size: int) -> int:
        """Make the folder ready to be filled, anew where its files are damaged.

        Returns the batch size to go on with: the one the cache was begun with, because the bits
        of a row depend on the batch that it was computed in.
        """
        known = self._batch_size()
        if known is not None:
            return known
        meta = self.folder / "meta.json"
        if meta.exists():
            _log.warning("the feature cache %s is damaged and computed anew", self.folder)
        with _writing(self.folder):
            meta.unlink(missing_ok=True)  # first: a half-made folder must not look like a whole one
            with atomic_write(self.folder / "done.npy") as handle:
                np.save(handle, np.zeros(self.shape[0], np.uint8))
            with atomic_write(self.folder / "features.npy") as handle:
                header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(handle, header)
                handle.truncate(handle.tell() + self.dtype.itemsize * int(np.prod(self.shape)))
        write_json(meta, {"identity": self.identity, "batch_size": batch_size})
        return batch_size

    def write(self, start: int, rows: np.ndarray) -> None:
        """Store rows [B, R, F] from row `start` on, then mark them done."""
        with _writing(self.folder):
            _overwrite(self.folder / "features.npy", start, rows.astype(self.dtype, order="C"))
            _overwrite(self.folder / "done.npy", start, np.ones(len(rows), np.uint8))

    def _batch_size(self) -> int | None:
        """The batch size in meta.json; None unless all three files are there and whole."""
        try:
            meta = read_json(self.folder / "meta.json")
            done = np.load(self.folder / "done.npy", allow_pickle=False)
            features = self.features()
            batch_size = int(meta["batch_size"])
            whole = meta["identity"] == self.identity and batch_size > 0
        except (DataError, OSError, ValueError, EOFError, KeyError, TypeError):
            return None
        whole &= done.shape == self.shape[:1] and done.dtype == np.uint8
        whole &= features.shape == self.shape and features.dtype == self.dtype
        return batch_size if whole else None


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn an OSError into a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write the feature cache {folder}: {reason}") from error


def _overwrite(path: Path, start: int, rows: np.ndarray) -> None:
    """Overwrite rows of an .npy file from row `start` on; they are on the disk at return."""
    header = np.load(path, mmap_mode="r", allow_pickle=False).offset
    with path.open("r+b") as handle:
        handle.seek(header + start * rows[0].nbytes)
        handle.write(rows.tobytes())
        handle.flush()
        os.fsync(handle.fileno())


def _fill(
    cache: _Cache,
    images: Images,
    encoded: Callable[[Sequence[range], Images], Encoded],
    batch_size: int,
    progress: bool,
) -> None:
    """Compute the missing rows, a whole block of `batch_size` rows at a time, in order."""
    done = cache.done()
    blocks = [range(i, min(i + batch_size, len(done))) for i in range(0, len(done), batch_size)]
    blocks = [block for block in blocks if not done[block.start : block.stop].all()]
    missing = sum(map(len, blocks))
    with (
        tqdm(
            total=len(done),
            initial=len(done) - missing,
            desc="features",
            unit="image",
            disable=not progress or not blocks,
        ) as bar,
        contextlib.closing(encoded(blocks, images)) as found,
    ):
        for block, features in found:
            _check(features, block, images, cache)
            cache.write(block.start, features)
            bar.update(len(block))


def _check(features: np.ndarray, block: range, images: Images, cache: _Cache) -> None:
    """Refuse features of another shape and, in the file's own precision, without a value."""
    expected = (len(block), *cache.shape[1:])
    if features.shape != expected:
        raise DataError(f"encode must return {list(expected)}, got {list(features.shape)}")
    with np.errstate(over="ignore"):
        finite = np.isfinite(features.astype(cache.dtype)).all(axis=(1, 2))
    if not finite.all():
        name = images[block[int(np.argmin(finite))]][0]
        raise NumericsError(f"the features of {name} hold NaN or infinity as {cache.dtype}")
