"""Flickr8k in the three layouts it is found in: the official one, Karpathy's JSON and Kaggle's CSV.

official  Flickr8k.token.txt (name#k<TAB>caption), Flickr_8k.{train,dev,test}Images.txt
karpathy  dataset_flickr8k.json
kaggle    captions.txt, a CSV with the header image,caption; no split lists

Each file may lie in the root or one folder deeper; so may the folder of images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from captioner.data.captions import CaptionData, CaptionedImage, assemble, count_words
from captioner.data.formats.karpathy import load_karpathy
from captioner.data.formats.splits import SPLIT_NAMES, draw_splits
from captioner.data.formats.tables import read_csv, read_lines
from captioner.errors import ConfigError, DataError

# In the order in which "auto" prefers them: the authors' own lists first, no lists last.
CAPTION_FILES = {
    "official": "Flickr8k.token.txt",
    "karpathy": "dataset_flickr8k.json",
    "kaggle": "captions.txt",
}
SPLIT_LISTS = {split: f"Flickr_8k.{split}Images.txt" for split in SPLIT_NAMES}
IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
STRAY_KEY = "2258277193_586949ec62.jpg.1"  # in Flickr8k.token.txt, and no such image exists
_FRACTIONS = {"train": 6000 / 8000, "dev": 1000 / 8000, "test": 1000 / 8000}

Captions = dict[str, tuple[str, ...]]  # by image name


@dataclass(frozen=True)
class CaptionFiles:
    """What was found: the layout, its caption file, and the caption files of the other layouts."""

    layout: str
    captions: Path
    others: tuple[Path, ...]


def load_flickr8k(root: Path | str, *, layout: str = "auto", seed: int = 0) -> CaptionData:
    """Read Flickr8k below `root`; notes say which layout was taken and what was left out.

    Without split lists a split in the official proportions is drawn from `seed`. DataError when a
    file is missing or not as expected (images: when their split is asked for), ConfigError for an
    unknown layout.
    """
    root = Path(root)
    files = find_captions(root, layout)
    image_root = find_images(root)
    notes = [f"Flickr8k: {files.layout} layout, {files.captions}, images from {image_root}"]
    if files.others:
        notes.append("also there and not read: " + ", ".join(path.name for path in files.others))
    if files.layout == "karpathy":
        data = load_karpathy(files.captions, image_root)
        return replace(data, name="flickr8k, karpathy layout", notes=(*notes, *data.notes[1:]))
    captions = read_captions(files)
    splits = read_split_lists(root)
    if splits:
        notes += _check_lists(splits, files.captions, captions)
    else:
        names = [name for name in captions if name != STRAY_KEY]
        splits = draw_splits(names, fractions=_FRACTIONS, seed=seed)
        notes.append(
            f"no official split lists ({SPLIT_LISTS['train']}, ...): a split in their proportions "
            f"was drawn with seed {seed}, so scores do not compare with published ones"
        )
        notes += _note_on_stray_key(captions, ())
    return assemble(
        name=f"flickr8k, {files.layout} layout",
        source=files.captions,
        splits={
            split: [CaptionedImage(name, image_root / name, captions[name], name) for name in names]
            for split, names in splits.items()
        },
        notes=notes,
    )


def find_captions(root: Path, layout: str = "auto") -> CaptionFiles:
    """Detect the layout by its caption file; DataError naming the files that were not found."""
    if layout != "auto" and layout not in CAPTION_FILES:
        raise ConfigError(
            f"Flickr8k has no layout {layout!r}; expected auto, {', '.join(CAPTION_FILES)}"
        )
    there = {key: path for key, name in CAPTION_FILES.items() if (path := _find_file(root, name))}
    chosen = next(iter(there), None) if layout == "auto" else layout
    if chosen is None or chosen not in there:
        wanted = list(CAPTION_FILES.values()) if layout == "auto" else [CAPTION_FILES[layout]]
        raise DataError(
            f"no captions of Flickr8k in {root} nor one folder deeper: expected "
            f"{' or '.join(wanted)} (scripts/prepare_flickr8k.py fetches the official files)"
        )
    others = tuple(path for key, path in there.items() if key != chosen)
    return CaptionFiles(chosen, there[chosen], others)


def find_images(root: Path) -> Path:
    """The folder of images; DataError naming the folders looked for, when none holds a .jpg."""
    for folder in (place / name for place in _places(root) for name in IMAGE_FOLDERS):
        if folder.is_dir() and any(path.suffix.lower() == ".jpg" for path in folder.iterdir()):
            return folder
    raise DataError(
        f"no images of Flickr8k in {root} nor one folder deeper: expected .jpg files in a folder "
        f"{' or '.join(IMAGE_FOLDERS)} (scripts/prepare_flickr8k.py fetches them)"
    )


def read_captions(files: CaptionFiles) -> Captions:
    """The captions of every image of an official or Kaggle caption file, stray key included."""
    captions: dict[str, list[str]] = {}
    if files.layout == "official":
        _read_token_file(files.captions, captions)
    else:
        for _, row in read_csv(files.captions, columns=("image", "caption")):
            captions.setdefault(row["image"].strip(), []).append(row["caption"])
    if not captions:
        raise DataError(f"{files.captions} holds no captions")
    return {name: tuple(texts) for name, texts in captions.items()}


def read_split_lists(root: Path) -> dict[str, list[str]]:
    """The official lists, or nothing where none is there; DataError when only some are."""
    paths = {split: _find_file(root, name) for split, name in SPLIT_LISTS.items()}
    absent = [SPLIT_LISTS[split] for split, path in paths.items() if path is None]
    if absent and len(absent) < len(paths):
        raise DataError(f"{root}: the split list {absent[0]} is missing, though others are there")
    return {split: _read_list(path) for split, path in paths.items() if path is not None}


def _check_lists(
    lists: Mapping[str, list[str]], captions_file: Path, captions: Captions
) -> list[str]:
    """Notes on what is in no list; DataError for a listed image without captions."""
    for split, names in lists.items():
        unknown = [name for name in names if name not in captions]
        if unknown:
            raise DataError(
                f"{SPLIT_LISTS[split]} names {len(unknown)} images without captions in "
                f"{captions_file}, the first: {unknown[0]}"
            )
    listed = {name for names in lists.values() for name in names}
    notes = _note_on_stray_key(captions, listed)
    outside = [name for name in captions if name not in listed and name != STRAY_KEY]
    if outside:
        note = f"left out {len(outside)} images in no split, the first: {outside[0]}"
        short = [c for name in outside for c in captions[name] if count_words(c) < 2]
        if short:
            note += f"; {len(short)} of their captions have fewer than two words, as {short[0]!r}"
        notes.append(note)
    return notes


def _note_on_stray_key(captions: Captions, listed: Iterable[str]) -> list[str]:
    if STRAY_KEY not in captions or STRAY_KEY in listed:
        return []
    return [f"left out the stray key {STRAY_KEY}, which has no image"]


def _read_token_file(path: Path, captions: dict[str, list[str]]) -> None:
    first_seen: dict[str, int] = {}
    for line, text in read_lines(path):
        key, tab, caption = text.partition("\t")
        name, hash_mark, number = key.rpartition("#")
        if not (tab and hash_mark and name and number.isdecimal()):
            raise DataError(
                f"{path}, line {line}: expected name#k<TAB>caption, found {text[:60]!r}"
            )
        if first_seen.setdefault(key, line) != line:
            raise DataError(
                f"{path}, line {line}: the key {key} stands on line {first_seen[key]} too"
            )
        captions.setdefault(name, []).append(caption)


def _read_list(path: Path) -> list[str]:
    first_seen: dict[str, int] = {}
    for line, text in read_lines(path):
        name = text.strip()
        if first_seen.setdefault(name, line) != line:
            raise DataError(f"{path}, line {line}: {name} stands on line {first_seen[name]} too")
    return list(first_seen)


def _places(root: Path) -> list[Path]:
    """The root and the folders in it."""
    if not root.is_dir():
        return []
    return [root, *sorted(entry for entry in root.iterdir() if entry.is_dir())]


def _find_file(root: Path, name: str) -> Path | None:
    candidates = (folder / name for folder in _places(root))
    return next((path for path in candidates if path.is_file()), None)
