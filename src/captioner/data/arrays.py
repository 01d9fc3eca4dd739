"""numpy's files, of which a damaged one ends in one clear error."""

from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import DataError
from captioner.files import refuse_special


def load_array(path: Path) -> np.ndarray:
    """The array of an .npy file, memory-mapped, read only; DataError naming a file that is none."""
    found = _load(path, mmap_mode="r")
    if not isinstance(found, np.ndarray):
        raise DataError(f"cannot read the array in {path}: it is an archive of arrays (.npz)")
    return found


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; DataError naming a file that is none."""
    found = _load(path)
    if isinstance(found, np.ndarray):
        raise DataError(f"cannot read the arrays in {path}: it is a single one (.npy)")
    return found


def _load(path: Path, **options: Any) -> Any:
    try:
        refuse_special(path)
        found = np.load(path, allow_pickle=False, **options)
        if isinstance(found, np.ndarray):
            return found
        with found:
            arrays = {name: found[name] for name in found.files}
        for name, one in arrays.items():
            if not isinstance(one, np.ndarray):  # bytes, where it is no array at all
                raise DataError(f"cannot read the array in {path}: {name} is none")
        return arrays
    except DataError:
        raise
    except Exception as error:  # of many kinds: numpy reads archives, and headers as Python
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataError(f"cannot read the array in {path}: {reason}") from error
