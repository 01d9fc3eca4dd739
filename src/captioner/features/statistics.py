"""Mean and deviation of cached features, kept beside them: a grid's take seconds to compute.

Letters: B images, F image feature.
"""

import hashlib
import logging
import zipfile
from pathlib import Path

import numpy as np

from captioner.errors import DataError
from captioner.files import atomic_write

log = logging.getLogger(__name__)
_CODE = ("rows.py", "store.py", "statistics.py")  # whose sums these are


class KeptStatistics:
    """The file for the images `rows` [B] of a cache's `folder`, named by a hash of the rows and of
    the code that computes; whoever makes the cache anew removes all such files."""

    PATTERN = "statistics_*.npz"

    def __init__(self, folder: Path, rows: np.ndarray) -> None:
        digest = hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes())
        for name in _CODE:
            digest.update((Path(__file__).parent / name).read_bytes())
        self.path = folder / self.PATTERN.replace("*", digest.hexdigest()[:16])

    def read(self, feature_dim: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean [F] and deviation [F]; None where there is no file, or a damaged one."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                mean, std = arrays["mean"], arrays["std"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("the statistics in %s are damaged and made anew: %s", self.path, error)
            return None
        return (mean, std) if mean.shape == std.shape == (feature_dim,) else None

    def write(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Keep them; where that is not possible the log says so."""
        try:
            with atomic_write(self.path) as handle:
                np.savez(handle, mean=mean, std=std)
        except DataError as error:
            log.info("the features' statistics are not kept for later runs: %s", error)
