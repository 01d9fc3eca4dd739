"""Peak memory of a whole training run, in a process of its own: reading the data, one epoch,
validation and checkpoints, all as scripts/train.py does it, on features that lie in a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.captions import captioned_images, random_features
from benchmarks.memory import peak_bytes
from benchmarks.processes import ROOT
from benchmarks.worker import Worker
from captioner.build.trainer import build_trainer
from captioner.commands.cli import compose_config
from captioner.data.captions import CaptionedImage
from captioner.files import write_json

BATCH_SIZE, FEATURES = 100, "features.npy"


def peak_memory_of_training(
    images: Sequence[CaptionedImage], *, data_root: str | None, seed: int
) -> float:
    """Bytes at the peak of one epoch over `images`, a sixth as many more validated at its end.

    CaptionerError with the run's own words when it fails.
    """
    dev = max(1, len(images) // 6)
    splits = {
        "train": images,
        "val": captioned_images(dev, data_root=data_root, seed=seed, split="dev"),
    }
    with tempfile.TemporaryDirectory() as folder:
        _write_data(Path(folder), splits, seed=seed)
        with Worker(TrainingRun, folder, threads=torch.get_num_threads()) as worker:
            return float(worker.call("peak_bytes"))


def _write_data(folder: Path, splits: dict[str, Sequence[CaptionedImage]], *, seed: int) -> None:
    """Karpathy's JSON, empty image files (never opened) and features [n, 1, F]."""
    (folder / "images").mkdir()
    entries = []
    for split, images in splits.items():
        for image in images:
            (folder / "images" / image.name).touch()
            sentences = [{"raw": caption} for caption in image.captions]
            entries.append({"filename": image.name, "split": split, "sentences": sentences})
    write_json(folder / "captions.json", {"dataset": "benchmark", "images": entries})
    store = random_features([one for images in splits.values() for one in images], 1280, seed=seed)
    np.save(folder / FEATURES, store.features)
    write_json(folder / "features.names.json", store.names)


class TrainingRun:
    """A run on the data in `folder`, as `_write_data` leaves it."""

    def __init__(self, folder: str) -> None:
        overrides = [
            *("data=karpathy", f"data.json={folder}/captions.json", f"data.images={folder}/images"),
            *("encoder=features", f"encoder.path={folder}/{FEATURES}", f"run_dir={folder}/run"),
            *("device=cpu", f"threads={torch.get_num_threads()}", "trainer.epochs=1"),
            *(f"trainer.batch_size={BATCH_SIZE}", "trainer.progress=false"),
            "trainer.shown_pictures=0",
        ]
        config = compose_config("train", overrides, configs=ROOT / "configs")
        self.trainer = build_trainer(config)

    def peak_bytes(self) -> int:
        """Of this process, after the run."""
        self.trainer.run()
        return peak_bytes()
