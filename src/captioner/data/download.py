"""Downloads that resume, and are checked before they get their name."""

import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from captioner.data.formats.tables import read_lines
from captioner.errors import DataError
from captioner.files import atomic_write, disk_errors, file_digest, refuse_special
from captioner.progress import Progress

SUMS_FILE = "SHA256SUMS"
_CHUNK = 1 << 20


def download(
    url: str,
    path: Path | str,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
) -> Path:
    """Fetch `url` to `path`, unless it is there, and check it.

    What has arrived is kept in `path`.part, and the next attempt or call asks for the rest.
    DataError when the network fails (`attempts` times in a row without progress; `timeout` in
    seconds), when the disk does, or when a checksum differs (the .part is removed).
    """
    path = Path(path)
    if path.exists():
        check_digests(path, sha256=sha256, md5=md5)
        return path
    part = path.with_name(f"{path.name}.part")
    with disk_errors(f"make the folder {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    _fetch(url, part, attempts=attempts, timeout=timeout)
    try:
        check_digests(part, sha256=sha256, md5=md5)
    except DataError:
        part.unlink()
        raise
    part.replace(path)
    return path


def check_digests(path: Path, *, sha256: str | None = None, md5: str | None = None) -> None:
    """DataError when the file's sha256 or md5 (hex) is not as expected, None is not checked, or it
    is no ordinary file."""
    refuse_special(path)
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None and (found := file_digest(path, name)) != expected.lower():
            raise DataError(
                f"{path} is damaged or another file: {name} {found}, expected {expected}"
            )


def check_recorded(path: Path) -> bool:
    """Check a file against the SHA256SUMS beside it (DataError); False when it is not listed."""
    recorded = read_sums(path.with_name(SUMS_FILE)).get(path.name)
    if recorded is None:
        return False
    if (found := file_digest(path)) != recorded:
        raise DataError(
            f"{path} has changed: sha256 {found}, expected {recorded} as recorded in {SUMS_FILE} "
            "beside it"
        )
    return True


def record_sum(path: Path) -> str:
    """Write the file's sha256 into the SHA256SUMS beside it, as sha256sum(1) reads it; the sum."""
    sums_path = path.with_name(SUMS_FILE)
    sums = {**read_sums(sums_path), path.name: file_digest(path)}
    with atomic_write(sums_path, "w") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return sums[path.name]


def read_sums(path: Path) -> dict[str, str]:
    """The file names and their sha256 of a SHA256SUMS file; none when it does not exist."""
    sums: dict[str, str] = {}
    for number, line in read_lines(path) if path.exists() else []:
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None:
            raise DataError(f"{path}, line {number}: expected 64 hex digits, two spaces and a name")
        sums[match[2]] = match[1].lower()
    return sums


def _fetch(url: str, part: Path, *, attempts: int, timeout: float) -> None:
    if part.exists():
        refuse_special(part)
    failures = 0
    while True:
        before = _size(part)
        try:
            if _fetch_rest(url, part, timeout):
                return
            reason = "the connection was cut"
        except ValueError as error:  # not an address, or a Content-Length that is no number
            raise DataError(f"cannot download {url}: {error}") from error
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DataError(f"cannot download {url}: the server answers {error}") from error
            reason = f"the server answers {error}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
        # Only attempts that bring nothing count, so that a large file survives many cuts.
        failures = 1 if _size(part) > before else failures + 1
        if failures >= attempts:
            raise DataError(
                f"cannot download {url}: {reason}; {_size(part)} bytes are kept in {part}, and the "
                "next try continues from there"
            )
        time.sleep(0.2 * 2**failures)


def _fetch_rest(url: str, part: Path, timeout: float) -> bool:
    """One request for what is missing; True when the file is whole, False when it was cut short."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # Nothing follows our last byte: either all is here, or this is another file's part.
        if error.headers.get("Content-Range", "").endswith(f"/{start}"):
            return True
        part.unlink()
        return False
    with response:
        given = response.headers.get("Content-Range", "")
        if response.status != 206 or not given.startswith(f"bytes {start}-"):
            start = 0  # the server sends the whole file again
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _copy(response, part, start, total)
    return total is None or _size(part) == total


def _copy(response: http.client.HTTPResponse, part: Path, start: int, total: int | None) -> None:
    name = part.name.removesuffix(".part")
    with disk_errors(f"write {part}"):
        file = part.open("ab" if start else "wb")
    with file, Progress(total, name, units="bytes", done=start, scale=True) as bar:
        while chunk := response.read1(_CHUNK):
            # Apart from the network's errors: trying again does not empty a disk.
            with disk_errors(f"write {part}"):
                file.write(chunk)
                file.flush()
            bar.update(len(chunk))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
