"""Flickr8k made ready: downloaded or found, checked, unpacked, and its counts verified."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from captioner.data.captions import CaptionData
from captioner.data.download import check_digests, check_recorded, record_sum
from captioner.data.download import download as fetch
from captioner.data.formats.flickr8k import (
    CAPTION_FILES,
    PICTURE_FOLDERS,
    CaptionFiles,
    find_captions,
    find_pictures,
    load_flickr8k,
    read_captions,
    read_split_lists,
)
from captioner.errors import DataError

_MIRROR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
IMAGES_URL = f"{_MIRROR}/Flickr8k_Dataset.zip"
TEXT_URL = f"{_MIRROR}/Flickr8k_text.zip"
# Nobody publishes sha256 sums of these two archives. These md5 sums stand in the R package
# torchvision (mlverse/torchvision, R/dataset-flickr.R) and, the same, in other public projects.
PUBLISHED_MD5 = {
    IMAGES_URL: "f18a1e2920de5bd84dae7cf08ec78978",
    TEXT_URL: "bf6c1abcb8e4a833b7f922104de18627",
}
# Pictures (or keys) and captions of each layout's caption file.
EXPECTED_CAPTIONS = {"official": (8092, 40460), "karpathy": (8000, 40000), "kaggle": (8091, 40455)}
EXPECTED_SPLITS = {"train": 6000, "dev": 1000, "test": 1000}
EXPECTED_PICTURES = 8091


@dataclass(frozen=True)
class _Archive:
    path: Path
    url: str
    sha256: str | None
    present: bool  # its content lies unpacked already

    @property
    def md5(self) -> str | None:
        """The published sum, which holds for the default address only and gives way to a sha256."""
        return None if self.sha256 else PUBLISHED_MD5.get(self.url)


def prepare_flickr8k(
    *,
    root: Path | str,
    download: bool = True,
    images_url: str = IMAGES_URL,
    text_url: str = TEXT_URL,
    images_sha256: str | None = None,
    text_sha256: str | None = None,
) -> str:
    """Bring Flickr8k into `root` and return a report of what was done and counted.

    Archives already lying in `root` are used; missing ones are downloaded, with resume. No sha256
    is published for them, so each archive is held against the sha256 given here, or else against
    the md5 published for the default address; its sha256 is recorded in SHA256SUMS once it has been
    unpacked, and checked ever after. Unpacking checks each file's CRC. DataError when a checksum, a
    caption or split count is wrong, when a split has lost some of its pictures, and, with the way
    to do it by hand, when there is no network.
    """
    root = Path(root)
    archives = _archives(root, images_url, text_url, images_sha256, text_sha256)
    lines: list[str] = []
    for archive in archives:
        if archive.path.exists() or not archive.present:
            lines += _provide(archive, root, download)
    return "\n".join([*lines, *verify_flickr8k(root)])


def verify_flickr8k(root: Path | str) -> list[str]:
    """Count captions, splits and pictures below `root`; the lines of a report.

    DataError listing all counts that are not Flickr8k's. A split with no picture at all is reported
    and no error, since a test split may be kept elsewhere on purpose.
    """
    root = Path(root)
    data = load_flickr8k(root)
    files = find_captions(root)
    checks = _count_captions(files, data)
    if files.layout == "karpathy" or read_split_lists(root):  # a drawn split has other sizes
        checks += _count_splits(data)
    wrong = [
        f"{what}: found {found}, expected {want}" for what, found, want in checks if found != want
    ]
    lines, lost = _count_pictures(root, data)
    if wrong or lost:
        raise DataError(f"{root} is not the whole of Flickr8k: {'; '.join([*wrong, *lost])}")
    counted = [f"{what}: {found}, as expected" for what, found, _ in checks]
    return [*data.notes, *counted, *lines]


def manual_instructions(root: Path) -> str:
    """How to get the files by hand and where to put them."""
    return (
        f"To do it by hand, fetch {IMAGES_URL} (1.1 GB) and {TEXT_URL} (2 MB) where there is a "
        f"network, put both in {root} as they are, and run this again. Or unpack Kaggle's dataset "
        f"adityajn105/flickr8k ({CAPTION_FILES['kaggle']} and Images/) there, or Karpathy's "
        f"{CAPTION_FILES['karpathy']} beside a folder of pictures named {PICTURE_FOLDERS[0]}."
    )


def _archives(
    root: Path,
    images_url: str,
    text_url: str,
    images_sha256: str | None,
    text_sha256: str | None,
) -> list[_Archive]:
    return [
        _Archive(root / "Flickr8k_text.zip", text_url, text_sha256, _there(find_captions, root)),
        _Archive(
            root / "Flickr8k_Dataset.zip", images_url, images_sha256, _there(find_pictures, root)
        ),
    ]


def _there(find: Callable[[Path], object], root: Path) -> bool:
    try:
        find(root)
    except DataError:
        return False
    return True


def _provide(archive: _Archive, root: Path, download: bool) -> list[str]:
    """Fetch, check and unpack one archive."""
    path = archive.path
    if path.exists():
        check_digests(path, sha256=archive.sha256, md5=archive.md5)
    elif not download:
        raise DataError(f"{path} is not there. {manual_instructions(root)}")
    else:
        try:
            fetch(archive.url, path, sha256=archive.sha256, md5=archive.md5)
        except DataError as error:
            raise DataError(f"{error}. {manual_instructions(root)}") from error
    checked = ["sha256 as given"] if archive.sha256 else ["md5 as published"] if archive.md5 else []
    recorded = check_recorded(path)
    unpacked = _unpack(path, root)
    # Recorded behind the CRC checks, so that a damaged archive cannot become the standard.
    checked.append("sha256 as recorded" if recorded else f"sha256 {record_sum(path)}, recorded")
    checked.append(f"{unpacked} files unpacked and their CRC checked")
    return [f"{path.name}: {line}" for line in checked]


def _unpack(archive: Path, root: Path) -> int:
    """Unpack what is not there yet in its full size; the number of files written."""
    written = 0
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member in _wanted(zipped.infolist()):
                target = root / member.filename
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                _unpack_member(zipped, member, target)
                written += 1
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} is damaged: {error}; remove it and run this again") from error
    except OSError as error:
        raise DataError(
            f"cannot unpack {archive} into {root}: {error.strerror or error}"
        ) from error
    return written


def _wanted(members: Iterable[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The files without the leavings of a Mac (__MACOSX/, .DS_Store, ._name)."""
    wanted = []
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if ".." in parts or member.filename.startswith("/"):
            raise DataError(f"{member.filename!r} in the archive points outside the folder")
        if not (member.is_dir() or parts[0] == "__MACOSX" or parts[-1].startswith(".")):
            wanted.append(member)
    return wanted


def _unpack_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole, so that a file of the right name is a good one. No fsync: 8,000 of them.
    part = target.with_name(f".{target.name}.part")
    try:
        with zipped.open(member) as source, part.open("wb") as file:
            shutil.copyfileobj(source, file)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


Check = tuple[str, int, int]  # what was counted, found, expected


def _count_captions(files: CaptionFiles, data: CaptionData) -> list[Check]:
    if files.layout == "karpathy":
        images = [image for split in data.splits.values() for image in split]
        counts = (len(images), sum(len(image.captions) for image in images))
    else:
        captions = read_captions(files)
        counts = (len(captions), sum(map(len, captions.values())))
    expected = EXPECTED_CAPTIONS[files.layout]
    what = (f"pictures named in {files.captions.name}", f"captions in {files.captions.name}")
    return [(what[0], counts[0], expected[0]), (what[1], counts[1], expected[1])]


def _count_splits(data: CaptionData) -> list[Check]:
    return [
        (f"pictures in split {split}", len(data.splits.get(split, ())), expected)
        for split, expected in EXPECTED_SPLITS.items()
    ]


def _count_pictures(root: Path, data: CaptionData) -> tuple[list[str], list[str]]:
    """Report lines, and what is wrong."""
    lines, lost = [], []
    for split, images in data.splits.items():
        missing = data.missing_pictures(split)
        if images and len(missing) == len(images):
            lines.append(
                f"split {split}: NONE of its {len(images)} pictures is there; it cannot be used"
            )
        elif missing:
            lost.append(
                f"split {split}: {len(missing)} of {len(images)} pictures are missing, "
                f"the first: {missing[0].name}"
            )
    folder = find_pictures(root)
    with os.scandir(folder) as entries:
        there = sum(entry.name.endswith(".jpg") for entry in entries)
    lines.append(f"pictures in {folder}: {there} of {EXPECTED_PICTURES}")
    return lines, lost
