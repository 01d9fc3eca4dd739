"""The feature cache on disk: one folder for an encoder and a set of images.

    features.npy  [n, R, F], read through a memory map
    done.npy      [n] uint8, 1 once the row above is on the disk
    meta.json     what the folder is for, and the batch size that its rows were computed with
    statistics_*  mean and deviation of some of its rows (statistics.py)
    lock          held by the process that computes

Letters: n images, B images of a batch, R regions (1 when pooled), F image feature.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from captioner.data.arrays import load_array
from captioner.errors import DataError
from captioner.features.statistics import KeptStatistics
from captioner.files import atomic_write, disk_errors, read_json, take_lock, write_json
from captioner.restore import Json, Size, restore

_log = logging.getLogger(__name__)


class _Meta(TypedDict):
    """What meta.json holds."""

    identity: dict[str, Json]
    batch_size: Size


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """The folder of one cache. Its files are written with plain writes, never through the memory
    map, where a full disk would kill the process (SIGBUS)."""

    folder: Path
    identity: dict[str, Any]
    shape: tuple[int, int, int]  # n, R, F
    dtype: np.dtype

    def complete(self) -> bool:
        """Whether every row is there and valid."""
        return self._batch_size() is not None and bool(self.done().all())

    def missing_bytes(self) -> int:
        """What the rows take that are not there yet."""
        missing = self.shape[0]
        if self._batch_size() is not None:
            missing -= int(self.done().sum())
        return missing * self.dtype.itemsize * self.shape[1] * self.shape[2]

    def features(self) -> np.ndarray:
        """[n, R, F], memory-mapped, read only."""
        return load_array(self.folder / "features.npy")

    def done(self) -> np.ndarray:
        """[n] bool, a copy."""
        return load_array(self.folder / "done.npy") == 1

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Wait until only this process computes here."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        with take_lock(self.folder / "lock", wait=True):
            yield

    def open(self, batch_size: int) -> int:
        """Prepare the folder, anew where its files are damaged.

        Returns the batch size it was begun with, on which the bits of a row depend.
        """
        known = self._batch_size()
        if known is not None:
            return known
        meta = self.folder / "meta.json"
        if meta.exists():
            _log.warning("the feature cache %s is damaged and computed anew", self.folder)
        with self._writing():
            meta.unlink(missing_ok=True)  # first: a half-made folder must not look like a whole one
            for file in self.folder.glob(KeptStatistics.PATTERN):
                file.unlink()
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
        with self._writing():
            stored = np.ascontiguousarray(rows, self.dtype)
            _overwrite(self.folder / "features.npy", start, stored)
            _overwrite(self.folder / "done.npy", start, np.ones(len(rows), np.uint8))

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(f"write the feature cache {self.folder}")

    def _batch_size(self) -> int | None:
        """The batch size in meta.json; None unless all three files are there and whole."""
        meta_file = self.folder / "meta.json"
        try:
            meta: _Meta = restore(_Meta, read_json(meta_file), str(meta_file))
            done, features = load_array(self.folder / "done.npy"), self.features()
        except DataError:
            return None
        whole = meta["identity"] == self.identity
        whole &= done.shape == self.shape[:1] and done.dtype == np.uint8
        whole &= features.shape == self.shape and features.dtype == self.dtype
        return meta["batch_size"] if whole else None


def _overwrite(path: Path, start: int, rows: np.ndarray) -> None:
    """Overwrite rows of an .npy file from row `start` on; they are on the disk at return."""
    header = np.load(path, mmap_mode="r", allow_pickle=False).offset
    with path.open("r+b") as handle:
        handle.seek(header + start * rows[0].nbytes)
        handle.write(rows.data)
        handle.flush()
        os.fsync(handle.fileno())
