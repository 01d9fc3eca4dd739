"""Rows of a feature array, and their statistics, without the array in memory.

Letters: n images, B images of a batch, R regions (1 when pooled), F image feature.
"""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from captioner.errors import DataError

_LARGE = 1 << 15  # bytes of a row that is read from the file, not through a map
_CHUNK_BYTES = 64 * 2**20  # of rows that are looked at together, in float64
_MOMENTS_BYTES = 2 * 2**20  # of a grid's rows that are summed together, in float32


class FeatureRows:
    """Copies rows out of `features` [n, R, F].

    Large rows of a memory-mapped file are read from the file: the pages that a map has touched
    count as the process's memory, in the end the whole file.
    """

    def __init__(self, features: np.ndarray) -> None:
        self.features = np.asarray(features)
        self._file: int | None = None
        if isinstance(features, np.memmap) and _is_whole_file(features):
            self._path, self._offset = str(features.filename), features.offset
            self._file = os.open(self._path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The rows [B] as they are stored, [B, R, F]; DataError where the file has lost them."""
        if self._file is None:
            return self.features[rows]
        values = np.empty((len(rows), *self.features.shape[1:]), self.features.dtype)
        memory = values.reshape(len(rows), -1).view(np.uint8)
        size = memory.shape[1]
        for row, place in zip(rows.tolist(), memory, strict=True):
            if os.preadv(self._file, [place.data], self._offset + row * size) != size:
                raise DataError(f"{self._path} was cut off while it was in use: row {row} is gone")
        return values

    def chunks(self, rows: np.ndarray, *, itemsize: int, size: int) -> Iterator[np.ndarray]:
        """`rows` in pieces whose features take at most `size` bytes at `itemsize` bytes a value,
        but one row at least."""
        step = max(1, size // (itemsize * self.features[0].size))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [F] and variance [F] in float64 over the rows [B] and their regions.

        In one pass over a grid in half precision, whose float32 sums of a few rows are exact to
        seven digits; otherwise in two, in float64.
        """
        half_grid = self.features.dtype == np.float16 and self.features.shape[1] > 1
        return self._shifted_moments(rows) if half_grid else self._moments(rows)

    def _moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = len(rows) * self.features.shape[1]
        mean = sum(values.sum(axis=0) for values in self._flat(rows)) / count
        squares = sum(np.square(values - mean).sum(axis=0) for values in self._flat(rows))
        return mean, squares / count

    def _flat(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The rows' features as float64 [a few thousand, F]."""
        for chunk in self.chunks(rows, itemsize=8, size=_CHUNK_BYTES):
            yield self(chunk).reshape(-1, self.features.shape[2]).astype(np.float64)

    def _shifted_moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E[x] = s + E[x - s] and Var[x] = E[(x - s)^2] - E[x - s]^2, s the mean of a few rows: so
        near to the mean, the difference loses nothing, and constant features have variance 0."""
        count, dim = len(rows) * self.features.shape[1], self.features.shape[2]
        chunks = list(self.chunks(rows, itemsize=4, size=_MOMENTS_BYTES))
        first = torch.from_numpy(self(chunks[0])).double().flatten(0, 1)
        shift = first.mean(0).float()
        sums = torch.zeros(2, dim, dtype=torch.float64)
        for chunk in chunks:
            values = torch.from_numpy(self(chunk)).float().flatten(0, 1).sub_(shift)
            sums[0] += values.sum(0)
            sums[1] += values.square_().sum(0)
        offset, squares = (sums / count).numpy()
        return shift.double().numpy() + offset, np.maximum(squares - offset**2, 0)


def _is_whole_file(features: np.memmap) -> bool:
    """Whether it maps large rows, and all that its file holds behind the header."""
    if features.filename is None or not features.flags.c_contiguous:
        return False
    size = Path(features.filename).stat().st_size
    large = len(features) > 0 and features[0].nbytes >= _LARGE
    return large and features.offset + features.nbytes == size
