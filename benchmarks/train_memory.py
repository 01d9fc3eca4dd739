"""Peak memory of a whole training run, in a process of its own: reading the data, one epoch,
validation and checkpoints, all as scripts/train.py does it, on features that lie in a file.

Run as `python -m benchmarks.train_memory FOLDER THREADS`, in a folder of `_write_data`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.processes import python_path
from benchmarks.workload import captioned_images, random_features
from captioner import config as schema
from captioner.build.trainer import build_trainer
from captioner.data.captions import CaptionedImage
from captioner.errors import CaptionerError
from captioner.files import write_json

FEATURE_DIM, BATCH_SIZE = 1280, 100


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
        command = [sys.executable, "-m", __name__, folder, str(torch.get_num_threads())]
        environment = {**os.environ, "PYTHONPATH": python_path()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CaptionerError(f"the run to measure memory on failed: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _write_data(folder: Path, splits: dict[str, Sequence[CaptionedImage]], *, seed: int) -> None:
    """Karpathy's JSON, empty picture files (never opened) and features [n, 1, F]."""
    (folder / "pictures").mkdir()
    everything = [image for images in splits.values() for image in images]
    for image in everything:
        (folder / "pictures" / image.name).touch()
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
    np.save(folder / "features.npy", store.features)
    write_json(folder / "features.names.json", store.names)


def _run(folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    config = schema.TrainConfig(
        device="cpu",
        threads=threads,
        name="benchmark",
        run_dir=str(folder / "run"),
        data=schema.KarpathyData(
            json=str(folder / "captions.json"), images=str(folder / "pictures")
        ),
        encoder=schema.EncoderConfig(
            kind="features", name="features", weights="none", path=str(folder / "features.npy")
        ),
        model=schema.ModelConfig(),
        optimizer=schema.OptimizerConfig(clip_norm=5.0),
        trainer=schema.TrainerConfig(
            epochs=1, batch_size=BATCH_SIZE, shown_pictures=0, progress=False
        ),
        generation=schema.GenerationConfig(),
    )
    build_trainer(config).run()


def peak_bytes() -> int:
    """This process's largest resident memory so far.

    Linux's VmHWM where there is one: the system's ru_maxrss also counts the parent's memory, which
    a child holds for a moment before it becomes a program of its own.
    """
    found = _of_status("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def own_bytes() -> int:
    """Memory of this process now that belongs to no file, or its peak where Linux does not say."""
    found = _of_status("RssAnon")
    return peak_bytes() if found is None else found


def _of_status(name: str) -> int | None:
    """A size of Linux's /proc/self/status in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    _run(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"peak_bytes": peak_bytes()}))
