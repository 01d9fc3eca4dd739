"""Files and folders that are whole or absent: written to a temporary name, then renamed."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from captioner.errors import DataError

_log = logging.getLogger(__name__)
_asking = threading.Lock()


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """An OSError inside becomes a DataError: "cannot `doing`: reason"."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot {doing}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb", *, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a handle whose content replaces `path` only when the block ends without an error.

    `mode` is "wb" or "w" (UTF-8); without `sync`, for thousands of files that can be made again,
    nothing waits for the disk. Raises DataError naming `path` when the disk is full, the folder
    cannot be written, and the like; the old file is then still there, whole.
    """
    path = Path(path)
    with disk_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as handle:
                yield handle
                handle.flush()
                if sync:
                    os.fsync(handle.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A new folder that takes the place of `path` only when the block ends without an error.

    Raises DataError naming `path` when it cannot be written; what was there is then there still.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 a link stays a link
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        old = temporary.with_name(f"{temporary.name}.old")
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting (with a warning) while another process does.

    The lock goes with this process, however it ends; its children do not hold it. DataError when
    the file cannot be made.
    """
    with disk_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("wb")
    with handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another process is at work in %s; waiting for it", path.parent)
            fcntl.lockf(handle, fcntl.LOCK_EX)
        yield


def _umask() -> int:
    """The process's umask; the system only tells it by setting one."""
    with _asking:  # of two threads the second would set the first one's 0 for good
        mask = os.umask(0)
        os.umask(mask)
    return mask


def file_digest(path: Path, name: str = "sha256") -> str:
    """The hex digest of a file; `name` is sha256 or md5."""
    # md5 is no security here, so systems that forbid it for that allow it.
    digest = hashlib.new(name, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as readable UTF-8 JSON, atomically."""
    with atomic_write(path, "w") as handle:
        json.dump(value, handle, ensure_ascii=False, indent=1)
        handle.write("\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; DataError names the file and, for broken JSON, the line."""
    try:
        with disk_errors(f"read {path}"):
            return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: line {error.lineno}: {error.msg}") from error
