from __future__ import annotations

import functools
import hashlib
import http.server
import io
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from captioner.data.download import SUMS_FILE, check_recorded, download, read_sums, record_sum
from captioner.data.formats import prepare
from captioner.data.formats.prepare import prepare_flickr8k
from captioner.errors import DataError

CONTENT = bytes(range(256)) * 4000


@dataclass
class Server:
    """A small web server with Range, whose connections can be cut."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # bytes to send before each next cut
    ranges: list[str | None] = field(default_factory=list)  # what each request asked for
    with_range: bool = True
    status: int | None = None
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, *args: object, server_state: Server) -> None:
        self.state = server_state
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        state, content = self.state, self.state.files.get(self.path.lstrip("/"))
        asked = self.headers.get("Range")
        state.ranges.append(asked)
        if content is None or state.status:
            self.send_error(state.status or 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.with_range else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + state.cuts.pop(0) if state.cuts else None
        self.wfile.write(content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("captioner.data.download.time.sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server({"a.bin": CONTENT})
    handler = functools.partial(Handler, server_state=state)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_download_continues_after_cuts(tmp_path: Path, server: Server) -> None:
    server.cuts = [100_000, 200_000, 50_000]
    path = download(f"{server.url}/a.bin", tmp_path / "new/a.bin", sha256=sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=300000-", "bytes=350000-"]
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_a_later_call_continues_the_part(tmp_path: Path, server: Server) -> None:
    server.cuts = [1000, 0]
    path = tmp_path / "a.bin"
    with pytest.raises(DataError, match=r"1000 bytes are kept in .*a\.bin\.part"):
        download(f"{server.url}/a.bin", path, attempts=1)
    assert not path.exists()
    server.cuts = []
    download(f"{server.url}/a.bin", path)
    assert path.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=1000-"
    asked = len(server.ranges)
    download(f"{server.url}/a.bin", path, sha256=sha256(CONTENT))
    assert len(server.ranges) == asked  # it was there


def test_a_whole_part_is_not_fetched_again(tmp_path: Path, server: Server) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    path = download(f"{server.url}/a.bin", tmp_path / "a.bin", sha256=sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_starts_anew(tmp_path: Path, server: Server) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(tmp_path: Path, server: Server) -> None:
    server.with_range, server.cuts = False, [1000]
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_checksum(tmp_path: Path, server: Server, kind: str) -> None:
    found = hashlib.new(kind, CONTENT).hexdigest()
    wrong = "0" * len(found)
    expected = {kind: wrong}
    with pytest.raises(DataError, match=f"{kind} {found}, expected {wrong}"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin", **expected)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.bin").write_bytes(b"other")
    with pytest.raises(DataError, match="is damaged or another file"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin", **expected)  # type: ignore[arg-type]


def test_what_the_server_refuses(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DataError, match="the server answers HTTP Error 404"):
        download(f"{server.url}/b.bin", tmp_path / "b.bin")
    assert len(server.ranges) == 1
    server.status = 503
    with pytest.raises(DataError, match="HTTP Error 503"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=3)
    assert len(server.ranges) == 4
    with pytest.raises(DataError, match="unknown url type"):
        download("a.bin", tmp_path / "a.bin")


def test_a_folder_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot make the folder"):
        download(f"{server.url}/a.bin", tmp_path / "file" / "a.bin")
    (tmp_path / "a.bin.part").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*a\.bin\.part"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")


def test_sums_are_recorded_once_and_checked_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"one")
    assert not check_recorded(path)
    assert record_sum(path) == sha256(b"one")
    assert read_sums(tmp_path / SUMS_FILE) == {"a.zip": sha256(b"one")}
    assert check_recorded(path)
    path.write_bytes(b"two")
    with pytest.raises(DataError, match=f"expected {sha256(b'one')}"):
        check_recorded(path)
    (tmp_path / SUMS_FILE).write_text("abc  a.zip\n")
    with pytest.raises(DataError, match="SHA256SUMS, line 1: expected 64 hex digits"):
        check_recorded(path)


SPLITS = {"train": [f"{key}.jpg" for key in "abcdef"], "dev": ["g.jpg"], "test": ["h.jpg"]}
NAMES = [name for names in SPLITS.values() for name in names]


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def flickr8k(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The two archives in small, on the server; the expected counts made small likewise."""
    captions = "".join(f"{name}#{k}\ta dog runs\n" for name in NAMES for k in range(2))
    text = {f"Flickr_8k.{key}Images.txt": "\n".join(names) for key, names in SPLITS.items()}
    leavings = {"__MACOSX/left.txt": "x"}
    server.files["text.zip"] = zipped({"Flickr8k.token.txt": captions, **text, **leavings})
    images = {f"Flicker8k_Dataset/{name}": f"image {name}" for name in NAMES}
    server.files["images.zip"] = zipped({**images, "Flicker8k_Dataset/.DS_Store": "x"})
    monkeypatch.setattr(prepare, "EXPECTED_CAPTIONS", {"official": (8, 16)})
    monkeypatch.setattr(prepare, "EXPECTED_SPLITS", {"train": 6, "dev": 1, "test": 1})
    monkeypatch.setattr(prepare, "EXPECTED_IMAGES", 8)
    return server


def run(root: Path, server: Server, **more: str) -> str:
    urls = {"images_url": f"{server.url}/images.zip", "text_url": f"{server.url}/text.zip"}
    return prepare_flickr8k(root=root, **{**urls, **more})  # type: ignore[arg-type]


def test_prepare_downloads_unpacks_and_counts(tmp_path: Path, flickr8k: Server) -> None:
    flickr8k.cuts = [50, 60]
    report = run(tmp_path, flickr8k, images_sha256=sha256(flickr8k.files["images.zip"]))
    assert "Flickr8k_Dataset.zip: sha256 as given" in report
    assert "Flickr8k_Dataset.zip: 8 files unpacked and their CRC checked" in report
    assert "Flickr8k_text.zip: 4 files unpacked" in report
    assert "captions in Flickr8k.token.txt: 16, as expected" in report
    assert "images in split train: 6, as expected" in report
    assert set(read_sums(tmp_path / SUMS_FILE)) == {"Flickr8k_Dataset.zip", "Flickr8k_text.zip"}
    assert not list(tmp_path.rglob("._*")) and not (tmp_path / "__MACOSX").exists()
    asked = len(flickr8k.ranges)
    (tmp_path / "Flicker8k_Dataset/a.jpg").unlink()  # as if unpacking had been stopped
    again = run(tmp_path, flickr8k)
    assert "Flickr8k_Dataset.zip: 1 files unpacked" in again
    assert "Flickr8k_text.zip: sha256 as recorded" in again
    assert len(flickr8k.ranges) == asked


def test_prepare_uses_archives_put_there_by_hand(tmp_path: Path, flickr8k: Server) -> None:
    (tmp_path / "Flickr8k_text.zip").write_bytes(flickr8k.files["text.zip"])
    (tmp_path / "Flickr8k_Dataset.zip").write_bytes(flickr8k.files["images.zip"])
    # The address is the default one, so these archives are held against the published md5.
    with pytest.raises(DataError, match=r"md5 .*, expected bf6c1abcb8e4a833b7f922104de18627"):
        prepare_flickr8k(root=tmp_path, download=False)
    report = run(tmp_path, flickr8k)
    assert "images in split test: 1, as expected" in report
    assert flickr8k.ranges == []


def test_prepare_leaves_files_that_are_there_alone(tmp_path: Path, flickr8k: Server) -> None:
    run(tmp_path, flickr8k)
    for archive in (*tmp_path.glob("*.zip"), tmp_path / SUMS_FILE):
        archive.unlink()
    before = sorted(tmp_path.rglob("*"))
    report = prepare_flickr8k(root=tmp_path, download=False)
    assert "official layout" in report
    assert sorted(tmp_path.rglob("*")) == before


def test_prepare_replaces_a_file_of_the_user_s_only_on_demand(
    tmp_path: Path, flickr8k: Server
) -> None:
    run(tmp_path, flickr8k)
    changed = next(tmp_path.rglob("a.jpg"))
    whole = changed.read_bytes()
    changed.write_bytes(b"retouched")
    with pytest.raises(DataError, match=r"a\.jpg is another file than the one in .*overwrite=true"):
        run(tmp_path, flickr8k)
    assert changed.read_bytes() == b"retouched"
    run(tmp_path, flickr8k, overwrite=True)
    assert changed.read_bytes() == whole


def test_without_network_or_download_manual_steps_are_explained(
    tmp_path: Path, server: Server
) -> None:
    by_hand = r"To do it by hand, fetch https://.*Flickr8k_Dataset\.zip.*put both in .*Kaggle"
    with pytest.raises(DataError, match=by_hand):
        prepare_flickr8k(root=tmp_path, download=False)
    closed = "http://127.0.0.1:9/x.zip"  # the discard port is closed
    with pytest.raises(DataError, match=f"cannot download {closed}.*{by_hand}"):
        prepare_flickr8k(root=tmp_path, text_url=closed)


def test_damaged_archives(tmp_path: Path, flickr8k: Server) -> None:
    whole = flickr8k.files["images.zip"]
    flickr8k.files["images.zip"] = whole.replace(b"image c", b"imago c")
    with pytest.raises(DataError, match=r"Flickr8k_Dataset\.zip is damaged: Bad CRC.*c\.jpg"):
        run(tmp_path, flickr8k)
    assert (
        not list(tmp_path.rglob("*.part")) and not (tmp_path / "Flicker8k_Dataset/c.jpg").exists()
    )
    (tmp_path / "Flickr8k_Dataset.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="is damaged: File is not a zip file"):
        run(tmp_path, flickr8k)
    (tmp_path / "Flickr8k_Dataset.zip").write_bytes(whole)  # nothing wrong was recorded
    assert "images in split train: 6, as expected" in run(tmp_path, flickr8k)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt"])
def test_an_archive_that_points_outside(tmp_path: Path, flickr8k: Server, name: str) -> None:
    flickr8k.files["text.zip"] = zipped({name: "x"})
    with pytest.raises(DataError, match="points outside the folder"):
        run(tmp_path / "root", flickr8k)
    assert not (tmp_path / "evil.txt").exists()


def test_wrong_counts_and_lost_images(tmp_path: Path, flickr8k: Server) -> None:
    run(tmp_path, flickr8k)
    for archive in tmp_path.glob("*.zip"):
        archive.unlink()
    (tmp_path / "Flicker8k_Dataset/h.jpg").unlink()
    report = prepare_flickr8k(root=tmp_path, download=False)
    assert "split test: NONE of its 1 images is there" in report
    (tmp_path / "Flicker8k_Dataset/b.jpg").unlink()
    with pytest.raises(DataError, match=r"split train: 1 of 6 images are missing.* b\.jpg"):
        prepare_flickr8k(root=tmp_path, download=False)
    shutil.copy(tmp_path / "Flicker8k_Dataset/a.jpg", tmp_path / "Flicker8k_Dataset/b.jpg")
    token = tmp_path / "Flickr8k.token.txt"
    token.write_text(token.read_text() + "a.jpg#2\ta cat sits\n")
    with pytest.raises(DataError, match=r"captions in Flickr8k\.token\.txt: found 17, expected 16"):
        prepare_flickr8k(root=tmp_path, download=False)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [(6, 1, ".* is encrypted"), (8, 97, ".*compression")],
    ids=["encrypted", "packed by a rare method"],
)
def test_an_archive_that_cannot_be_unpacked_is_named(
    tmp_path: Path, field: int, value: int, reason: str
) -> None:
    data = bytearray(zipped({"Flickr8k.token.txt": "a.jpg#0\ta dog runs\n"}))
    for header, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):  # the file's, the directory's
        data[data.index(header) + field + shift] = value
    (tmp_path / "Flickr8k_text.zip").write_bytes(data)
    with pytest.raises(DataError, match=rf"Flickr8k_text\.zip cannot be unpacked: {reason}"):
        prepare_flickr8k(root=tmp_path, download=False, text_url="http://elsewhere/x.zip")
