"""METEOR's table of paraphrases: 272 MB of text, and its packed form, kept for next time."""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captioner.errors import DataError
from captioner.evaluation import compiled
from captioner.files import atomic_write, user_cache

_PART = 1 << 20  # bytes of the gzipped text that are read at a time
_ENDING = 8  # bytes that gzip ends with: the text's CRC-32 and its size


def table_text(table: Path) -> Iterator[bytes]:
    """The text in parts; DataError when the file is cut short."""
    # In large pieces: each time that zlib is done, a thread waits for the others.
    unpacked = zlib.decompressobj(wbits=31)  # gzip's format
    with table.open("rb") as file:
        while packed := file.read(_PART):
            yield unpacked.decompress(packed)
    if not unpacked.eof:
        raise DataError(f"{table} is cut short")


def packed_table(table: Path) -> NDArray[np.int32]:
    """What `compiled.pack_paraphrases` makes of the text: from the user's cache, where it is put
    the first time. DataError when the file is cut short."""
    kept = _kept(table)
    if kept is not None and (found := _read(kept)) is not None:
        return found
    packed = compiled.pack_paraphrases(table_text(table))
    if kept is not None:
        # Where nothing can be written it is made each time, which takes some seconds.
        with contextlib.suppress(DataError), atomic_write(kept) as file:
            file.write(packed)
            file.write(_checksum(packed))
    return packed


def _kept(table: Path) -> Path | None:
    """The file of this content's packed form, in this version of it."""
    folder, size = user_cache(), table.stat().st_size
    if folder is None or size < _ENDING:
        return None
    with table.open("rb") as file:
        file.seek(-_ENDING, 2)
        ending = file.read().hex()
    return folder / f"paraphrases-{compiled.VERSION}-{size}-{ending}.bin"


def _read(kept: Path) -> NDArray[np.int32] | None:
    """A packed form as it was written on a machine like this one, or None."""
    try:
        content = np.fromfile(kept, np.int32)
    except OSError:
        return None
    packed, checksum = content[:-1], content[-1:]
    return packed if np.array_equal(checksum, _checksum(packed)) else None


def _checksum(packed: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.array([zlib.crc32(packed.data)], np.uint32).view(np.int32)
