"""Flickr8k made ready: downloaded or found, checked, unpacked, and its counts verified."""

import glob
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from captioner.data.captions import CaptionData
from captioner.data.download import check_digests, check_recorded, record_sum
from captioner.data.download import download as fetch
from captioner.data.formats import flickr8k
from captioner.errors import DataError
from captioner.files import atomic_write, disk_errors, refuse_special, remove_unfinished

_MIRROR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
IMAGES_URL = f"{_MIRROR}/Flickr8k_Dataset.zip"
TEXT_URL = f"{_MIRROR}/Flickr8k_text.zip"
# No sha256 sums of these two archives are published. These md5 sums are in the R package
# torchvision (mlverse/torchvision, R/dataset-flickr.R) and, the same, in other public projects.
PUBLISHED_MD5 = {
    IMAGES_URL: "f18a1e2920de5bd84dae7cf08ec78978",
    TEXT_URL: "bf6c1abcb8e4a833b7f922104de18627",
}
# Images (or keys) and captions of each layout's caption file.
EXPECTED_CAPTIONS = {"official": (8092, 40460), "karpathy": (8000, 40000), "kaggle": (8091, 40455)}
EXPECTED_SPLITS = {"train": 6000, "dev": 1000, "test": 1000}
EXPECTED_IMAGES = 8091


@dataclass(frozen=True)
class _Archive:
    path: Path
    url: str
    sha256: str | None
    find_content: Callable[[Path], object]  # DataError where it is not unpacked below a root

    @property
    def md5(self) -> str | None:
        """The published sum, for the default address only and when no sha256 is given."""
        return None if self.sha256 else PUBLISHED_MD5.get(self.url)


def prepare_flickr8k(
    *,
    root: Path | str,
    download: bool = True,
    images_url: str = IMAGES_URL,
    text_url: str = TEXT_URL,
    images_sha256: str | None = None,
    text_sha256: str | None = None,
    overwrite: bool = False,
) -> str:
    """Bring Flickr8k into `root` and return a report of what was done and counted.

    Archives in `root` are used; missing ones are downloaded, with resume. Each is checked against
    the sha256 given, or else the md5 published for the default address, each file against its CRC;
    then the sha256 is recorded in SHA256SUMS and checked from then on. DataError when a checksum or
    count is wrong, images are missing, (with instructions to do it by hand) there is no network, or
    without `overwrite` a file in `root` is another than the archive's.
    """
    root = Path(root)
    archives = (
        _Archive(root / "Flickr8k_text.zip", text_url, text_sha256, flickr8k.find_captions),
        _Archive(root / "Flickr8k_Dataset.zip", images_url, images_sha256, flickr8k.find_images),
    )
    needed = [one for one in archives if one.path.exists() or not _unpacked(one, root)]
    lines = [line for archive in needed for line in _provide(archive, root, download, overwrite)]
    return "\n".join([*lines, *verify_flickr8k(root)])


def verify_flickr8k(root: Path | str) -> list[str]:
    """Count captions, splits and images below `root`; the lines of a report.

    DataError listing the counts that are not Flickr8k's. A split without any image is only
    reported: a test split may be kept elsewhere on purpose.
    """
    root = Path(root)
    data = flickr8k.load_flickr8k(root)
    files = flickr8k.find_captions(root)
    checks = _count_captions(files, data)
    # A drawn split has other sizes.
    if files.layout == "karpathy" or flickr8k.read_split_lists(root):
        checks += [
            (f"images in split {split}", len(data.splits.get(split, ())), expected)
            for split, expected in EXPECTED_SPLITS.items()
        ]
    wrong = [f"{what}: found {n}, expected {want}" for what, n, want in checks if n != want]
    lines, lost = _count_images(root, data)
    if wrong or lost:
        raise DataError(f"{root} is not the whole of Flickr8k: {'; '.join([*wrong, *lost])}")
    counted = [f"{what}: {n}, as expected" for what, n, _ in checks]
    return [*data.notes, *counted, *lines]


def manual_instructions(root: Path) -> str:
    """How to get the files by hand and where to put them."""
    files, folder = flickr8k.CAPTION_FILES, flickr8k.IMAGE_FOLDERS[0]
    return (
        f"To do it by hand, fetch {IMAGES_URL} (1.1 GB) and {TEXT_URL} (2 MB) where there is a "
        f"network, put both in {root} as they are, and run this again. Or unpack Kaggle's dataset "
        f"adityajn105/flickr8k ({files['kaggle']} and Images/) there, or Karpathy's "
        f"{files['karpathy']} beside a folder of images named {folder}."
    )


def _unpacked(archive: _Archive, root: Path) -> bool:
    try:
        archive.find_content(root)
    except DataError:
        return False
    return True


def _provide(archive: _Archive, root: Path, download: bool, overwrite: bool) -> list[str]:
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
    unpacked = _unpack(path, root, overwrite)
    # Recorded after the CRC checks, so that a damaged archive cannot become the reference.
    checked.append("sha256 as recorded" if recorded else f"sha256 {record_sum(path)}, recorded")
    checked.append(f"{unpacked} files unpacked and their CRC checked")
    return [f"{path.name}: {line}" for line in checked]


def _unpack(archive: Path, root: Path, overwrite: bool) -> int:
    """Unpack what is not there yet in its full size; the number of files written.

    What is there in another size is the user's own: each file gets its name only when it is whole.
    """
    written = 0
    names: dict[Path, list[str]] = {}  # by folder
    try:
        refuse_special(archive)
        with disk_errors(f"unpack {archive} into {root}"), zipfile.ZipFile(archive) as zipped:
            for member in list(_wanted(zipped.infolist())):
                target = root / member.filename
                names.setdefault(target.parent, []).append(glob.escape(target.name))
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                if target.exists() and not overwrite:
                    raise DataError(
                        f"{target} is another file than the one in {archive}; move it away, or add "
                        "overwrite=true"
                    )
                with zipped.open(member) as source, atomic_write(target, sync=False) as file:
                    shutil.copyfileobj(source, file)
                written += 1
            for folder, patterns in names.items():
                remove_unfinished(folder, *patterns)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} is damaged: {error}; remove it and run this again") from error
    except Exception as error:  # of many kinds: encrypted, packed by a rare method
        reason = str(error) or type(error).__name__
        raise DataError(f"{archive} cannot be unpacked: {reason}") from error
    return written


def _wanted(members: Iterable[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
    """The files without those that macOS adds (__MACOSX/, .DS_Store, ._name)."""
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if ".." in parts or member.filename.startswith("/"):
            raise DataError(f"{member.filename!r} in the archive points outside the folder")
        if not (member.is_dir() or parts[0] == "__MACOSX" or parts[-1].startswith(".")):
            yield member


Check = tuple[str, int, int]  # what was counted, found, expected


def _count_captions(files: flickr8k.CaptionFiles, data: CaptionData) -> list[Check]:
    if files.layout == "karpathy":
        images = [image for split in data.splits.values() for image in split]
        counts = (len(images), sum(len(image.captions) for image in images))
    else:
        captions = flickr8k.read_captions(files)
        counts = (len(captions), sum(map(len, captions.values())))
    what = (f"images named in {files.captions.name}", f"captions in {files.captions.name}")
    return list(zip(what, counts, EXPECTED_CAPTIONS[files.layout], strict=True))


def _count_images(root: Path, data: CaptionData) -> tuple[list[str], list[str]]:
    """Report lines, and what is wrong."""
    lines, lost = [], []
    for split, images in data.splits.items():
        missing = data.missing_images(split)
        if images and len(missing) == len(images):
            what = f"NONE of its {len(images)} images is there; it cannot be used"
            lines.append(f"split {split}: {what}")
        elif missing:
            what = f"{len(missing)} of {len(images)} images are missing"
            lost.append(f"split {split}: {what}, the first: {missing[0].name}")
    folder = flickr8k.find_images(root)
    there = sum(path.suffix == ".jpg" for path in folder.iterdir())
    lines.append(f"images in {folder}: {there} of {EXPECTED_IMAGES}")
    return lines, lost
