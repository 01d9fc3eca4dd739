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
from benchmarks.worker import Worker
from captioner import config as schema
from captioner.build.trainer import build_trainer
from captioner.data.captions import CaptionedImage
from captioner.files import write_json

FEATURE_DIM, BATCH_SIZE, FEATURES = 1280, 100, "features.npy"


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
    everything = [image for images in splits.values() for image in images]
    for image in everything:
        (folder / "images" / image.name).touch()
    entries = [
        {
            "filename": image.name,
            "split": split,
            "sentences": [{"raw": caption} for caption in image.captions],
        }
        for split, images in splits.items()
        for image in images
    ]
    write_json(folder / "captions.json", {"dataset": "benchmark", "images": entries})
    store = random_features(everything, FEATURE_DIM, seed=seed)
    np.save(folder / FEATURES, store.features)
    write_json(folder / "features.names.json", store.names)


class TrainingRun:
    """A run on the data in `folder`, as `_write_data` leaves it."""

    def __init__(self, folder: str) -> None:
        root, threads = Path(folder), torch.get_num_threads()
        self.trainer = build_trainer(
            schema.TrainConfig(
                device="cpu",
                threads=threads,
                name="benchmark",
                run_dir=str(root / "run"),
                data=schema.KarpathyData(
                    json=str(root / "captions.json"), images=str(root / "images")
                ),
                encoder=schema.EncoderConfig(
                    kind="features", name="features", weights="none", path=str(root / FEATURES)
                ),
                model=schema.ModelConfig(),
                optimizer=schema.OptimizerConfig(clip_norm=5.0),
                trainer=schema.TrainerConfig(
                    epochs=1, batch_size=BATCH_SIZE, shown_pictures=0, progress=False
                ),
                generation=schema.GenerationConfig(),
            )
        )

    def peak_bytes(self) -> int:
        """Of this process, after the run."""
        self.trainer.run()
        return peak_bytes()
