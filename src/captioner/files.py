"""Files and folders: read whole with one clear error, written whole or not at all.

What is written goes to a temporary name and is then renamed.
"""

import contextlib
import fcntl
import gc
import glob
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
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

    `mode` is "wb" or "w": UTF-8, in which a byte of a file's name that is no UTF-8 becomes an
    escape such as \\udcff. Without `sync`, for thousands of files that can be made again, nothing
    waits for the disk, nor is removed what an earlier process left unfinished of `path`. Raises
    DataError naming `path` when the disk is full, the folder cannot be written, and the like; the
    old file is then still there, whole.
    """
    path = Path(path)
    with disk_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.resolve() == Path("/dev"):  # also where stdout there leads to a file
            raise DataError(f"{path} is a device, expected a file")
        if path.exists():
            refuse_special(path)  # would be replaced by a file
        temporary, hold = _begin(path, _make_file)
        try:
            encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
            with temporary.open(mode, encoding=encoding, errors=errors) as handle:
                yield handle
                handle.flush()
                if sync:
                    os.fsync(handle.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(hold)
    if sync:
        remove_unfinished(path.parent, glob.escape(path.name))


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A new folder that takes the place of `path` only when the block ends without an error.

    Raises DataError naming `path` when it cannot be written; what was there is then there still.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 a link stays a link
    with disk_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, hold = _begin(path, tempfile.mkdtemp)
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if path.exists():
                path.replace(temporary.with_name(f"{temporary.name}.old"))
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(hold)
    remove_unfinished(path.parent, glob.escape(path.name), folders=True)


def _make_file(*, dir: Path, prefix: str) -> str:
    descriptor, name = tempfile.mkstemp(dir=dir, prefix=prefix)
    os.close(descriptor)
    return name


def _begin(path: Path, make: Callable[..., str]) -> tuple[Path, int]:
    """A temporary file or folder beside `path`, and a descriptor that holds it: while that is open
    `remove_unfinished` leaves it alone."""
    while True:
        temporary = Path(make(dir=path.parent, prefix=f".{path.name}."))
        with contextlib.suppress(FileNotFoundError):  # removed before it was held
            hold = os.open(temporary, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks: never removed
                fcntl.flock(hold, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, hold
            os.close(hold)


def remove_unfinished(folder: Path, *names: str, folders: bool = False) -> None:
    """Remove what processes that were killed have left of the files, or else `folders`, that they
    were writing into `folder`.

    `names` are patterns of their names. What a living process is writing stays.
    """
    for path in folder.glob(".*"):
        left = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}(?:\.old)?", path.name)  # as tempfile names them
        known = left and any(fnmatch(left[1], name) for name in names)
        if not known or path.is_dir() != folders:
            continue
        with contextlib.suppress(OSError):
            hold = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folders:
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(hold)


def take_lock(path: Path, *, wait: bool) -> IO[bytes]:
    """Hold the lock file `path` until the handle is closed.

    While another process holds it: BlockingIOError, or with `wait` a warning, and it is waited for.
    The lock goes with this process, however it ends; its children do not hold it. DataError when
    the file cannot be made, or is none.
    """
    with disk_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            refuse_special(path)
        handle = path.open("ab")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            handle.close()
            raise
        _log.warning("another process is at work in %s; waiting for it", path.parent)
        fcntl.lockf(handle, fcntl.LOCK_EX)
    return handle


def user_cache() -> Path | None:
    """The folder of what the package keeps for a user and can make again: CAPTIONER_CACHE, or
    captioner in XDG_CACHE_HOME or ~/.cache; None where there is no home."""
    if named := os.environ.get("CAPTIONER_CACHE"):
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 raises
    return Path(caches, "captioner") if os.path.isabs(caches) else None  # noqa: PTH117


def _umask() -> int:
    """The process's umask; the system only tells it by setting one."""
    with _asking:  # of two threads the second would set the first one's 0 for good
        mask = os.umask(0)
        os.umask(mask)
    return mask


def refuse_special(path: Path | str) -> None:
    """DataError where `path` is a pipe, a device or a socket: to open or read one may never end."""
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise DataError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, expected a file")


def file_digest(path: Path, name: str = "sha256") -> str:
    """The hex digest of a file; `name` is sha256 or md5. DataError where it is no ordinary file."""
    refuse_special(path)
    # md5 is no security here, so systems that forbid it for that allow it.
    digest = hashlib.new(name, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; DataError names the line."""
    with disk_errors(f"read {path}"):
        refuse_special(path)
        data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # After a byte order mark the decoder counts from its end.
        mark = len(data) - len(error.object)
        line = data.count(b"\n", 0, mark + error.start) + 1
        raise DataError(
            f"{path}, line {line}: found the byte {error.object[error.start]:#04x}, which is not "
            "UTF-8; save the file as UTF-8"
        ) from error


# -- JSON -----------------------------------------------------------------------------------------


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as readable UTF-8 JSON, atomically; numbers that are not finite as null."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, indent=1)
    with atomic_write(path, "w") as handle:
        handle.write(f"{text}\n")


def write_json_rows(
    path: Path | str, value: Any, *, default: Callable[[Any], Any] | None = None
) -> None:
    """Write `value` as JSON, atomically, with each element of a list within objects on a line of
    its own: of long lists many times as fast as `write_json`. ValueError for numbers that are not
    finite; `default` is json.dumps's."""
    # Without indent the encoder is C's.
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=default)

    def parts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for number, (key, one) in enumerate(value.items()):
                yield f"{',' if number else '{'}\n{encoder.encode(key)}: "
                yield from parts(one)
            yield "\n}" if value else "{}"
        elif isinstance(value, list) and value:
            for number, one in enumerate(value):
                yield f"{',' if number else '['}\n{encoder.encode(one)}"
            yield "\n]"
        else:
            yield encoder.encode(value)

    with atomic_write(path, "w") as handle:
        handle.writelines(parts(value))
        handle.write("\n")


def _finite(value: Any) -> Any:
    """The same with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path | str, *, file_names: bool = False) -> Any:
    """The content of a JSON file, which is read strictly; DataError names the file and the line.

    Errors and `file_names` as for `parse_json`.
    """
    return parse_json(read_text(path), str(path), file_names=file_names)


def parse_json(text: str, source: str, *, line: int = 1, file_names: bool = False) -> Any:
    """The value of a JSON text that `source`, from its `line` on, holds.

    DataError for what is no JSON, NaN and infinity, a key that stands twice in an object (below
    1 MB: it takes half as long again, and larger texts are programs' tables), numbers of thousands
    of digits, nesting beyond Python's, and halves of surrogate pairs, which are no characters and
    cannot be written. With `file_names`, for files that this package writes, those halves that
    stand for the bytes of a name that is no UTF-8 (PEP 383) are let through.
    """
    distinct = _distinct if len(text) < 1 << 20 else None
    try:
        with no_collections():
            value = json.loads(text, object_pairs_hook=distinct, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"{source}, line {line + error.lineno - 1}"
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        place, fault = _first_fault(text)
        line += text.count("\n", 0, place)
        raise DataError(f"{source}, line {line}: {fault}") from error
    if "\\" in text and _SURROGATE.search(text):
        _refuse_half_pairs(text, source, line, file_names)
    return value


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Python looks for no cycles inside: captions, and what else is read from JSON, have none, and
    may be millions of objects, which would be gone through again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


_DEEP = 200  # as deep as nothing is nested that anybody writes, and less deep than Python gives up
_LONG = 4300  # digits, where Python gives up
# A text (and the colon that makes it a key), a constant or a number that is refused, a bracket.
_TOKEN = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"(?P<colon>\s*:)?|NaN|-?Infinity|[][{}]'
    rf"|(?<![.\d])\d{{{_LONG + 1},}}(?![.eE])",
    re.DOTALL,
)


def _first_fault(text: str) -> tuple[int, str]:
    """Where something stands that `parse_json` refuses, and what it is."""
    keys: list[set[str]] = []  # of every object or list that is open
    for token in _TOKEN.finditer(text):
        found = token[0]
        if found in "[{":
            keys.append(set())
            if len(keys) > _DEEP:
                return token.start(), f"lists and objects are nested more than {_DEEP} deep"
        elif found in "]}":
            keys.pop()
        elif token["colon"]:
            key = json.loads(found.rstrip()[:-1])
            if key in keys[-1]:
                return token.start(), f"the key {key!r} stands there twice"
            keys[-1].add(key)
        elif found[0].isdigit():
            return token.start(), f"a number of {len(found)} digits; at most {_LONG} can be read"
        elif found[0] != '"':
            return token.start(), f"{found} is no number of JSON; expected a finite number"
    return 0, "this cannot be read"


_SURROGATE = re.compile(r"\\u[dD]")
# Backslashes, from left to right: pairs of halves that belong together, a half alone, all others.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F]..)|.)", re.DOTALL
)
_BYTES = range(0xDC80, 0xDD00)  # U+DC80 + n stands for the byte 0x80 + n of a file's name


def _refuse_half_pairs(text: str, source: str, line: int, file_names: bool) -> None:
    for escape in _ESCAPE.finditer(text):
        half = escape["half"]
        if half and not (file_names and int(half[1:], 16) in _BYTES):
            line += text.count("\n", 0, escape.start())
            raise DataError(
                f"{source}, line {line}: \\{half} is half of a surrogate pair, expected characters"
            )
