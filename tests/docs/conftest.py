"""A small folder in which the commands of README and docs/ find what they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

WORDS = ["a dog runs on the grass", "a brown dog runs", "two children play on the grass"]
TEXT = "ROMEO:\ndef speak(line):\n    return line, and 'the grass'.\n\n" * 40
SPLITS = {"train": 12, "dev": 4, "test": 4}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets in every layout, photos, texts, features, results: a few images each."""
    folder = tmp_path_factory.mktemp("docs")
    names = {split: [f"{split}{n}.jpg" for n in range(count)] for split, count in SPLITS.items()}
    _write_images(folder, [name for split in names.values() for name in split])
    _write_flickr8k(folder / "data/flickr8k", names)
    _write_annotations(folder, names)
    _write_texts(folder)
    (folder / "hyp.json").write_text(
        json.dumps([{"image_id": n, "caption": WORDS[n]} for n in range(3)])
    )
    _write_coco(folder / "refs.json", {n: f"{n}.jpg" for n in range(3)})
    return folder


def _write_images(folder: Path, names: list[str]) -> None:
    photos = folder / "photos"
    photos.mkdir()
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / name)
    for copy in ("coco", "train2017", "val2017"):
        shutil.copytree(photos, folder / copy)
    (folder / "holiday").mkdir()
    shutil.copy(photos / names[0], folder / "holiday/beach.jpg")
    shutil.copy(photos / names[0], folder / "photo.jpg")
    Image.open(photos / names[0]).save(folder / "drawing.png")


def _write_flickr8k(root: Path, names: dict[str, list[str]]) -> None:
    """The official layout."""
    shutil.copytree(root.parents[1] / "photos", root / "Flicker8k_Dataset")
    lines = [
        f"{name}#{k}\t{WORDS[k % 3]} ."
        for split in names.values()
        for name in split
        for k in range(5)
    ]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for split, members in names.items():
        (root / f"Flickr_8k.{split}Images.txt").write_text("\n".join(members) + "\n")


def _write_annotations(folder: Path, names: dict[str, list[str]]) -> None:
    """The same images as COCO's annotations, Karpathy's JSON, a CSV file, and with own features."""
    everything = [name for split in names.values() for name in split]
    _write_coco(folder / "captions_train2017.json", dict(enumerate(names["train"])))
    _write_coco(folder / "captions_val2017.json", dict(enumerate(names["dev"])))
    karpathy = [
        {
            "filename": name,
            "split": {"dev": "val"}.get(split, split),
            "imgid": number,
            "sentences": [{"raw": caption, "tokens": caption.split()} for caption in WORDS],
        }
        for split, members in names.items()
        for number, name in enumerate(members)
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": karpathy, "dataset": "own"}))
    rows = [f"{name},{caption}" for name in everything for caption in WORDS]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    features = np.random.default_rng(0).normal(size=(len(everything), 8)).astype(np.float32)
    np.save(folder / "features.npy", features)
    (folder / "features.names.json").write_text(json.dumps(everything))
    torch.manual_seed(0)
    from captioner.models.encoders import make_encoder

    plain = make_encoder("plain", "plain_small", weights="random")
    torch.save(plain.trunk.state_dict(), folder / "plain.pt")


def _write_coco(path: Path, images: dict[int, str]) -> None:
    annotations = [
        {"id": 10 * image + k, "image_id": image, "caption": caption}
        for image in images
        for k, caption in enumerate(WORDS)
    ]
    listed = [{"id": image, "file_name": name} for image, name in images.items()]
    path.write_text(json.dumps({"images": listed, "annotations": annotations}))


def _write_texts(folder: Path) -> None:
    for name in ("input.txt", "book.txt", "other.txt"):
        (folder / name).write_text(TEXT)
    (folder / "ptb").mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"ptb/ptb.{split}.txt").write_text(TEXT)
