"""JPEG files to features by both readers of pictures, as the stage `features` of gpu-check asks.

Shapes: n pictures, R regions, F image feature, B pictures a batch.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.drawn_pictures import draw_pictures
from benchmarks.job_process import do_jobs
from benchmarks.record import Axes, Figure, Requirement, measured
from benchmarks.timing import Spread
from captioner.data.captions import CaptionedImage
from captioner.features.device_images import has_nvjpeg
from captioner.features.source import ImageFeatures
from captioner.models.encoder import Encoder
from captioner.models.encoders import make_encoder

DRAWN = 128  # different pictures
CLOSE = 0.05  # of the largest feature: bfloat16 through fifty layers, pixels a level apart
READERS = {"pil": 8, "torchvision": 8}  # and how many processes, or threads, read


def compare_readers(
    device: torch.device, *, network: str, pictures: int, side: int, batch_size: int
) -> dict[str, Any]:
    """Pictures a second into a new cache, after a first block to warm up; and how far apart."""
    torch.manual_seed(0)
    encoder = make_encoder("torchvision", network, weights="random")
    rates: dict[str, float] = {}
    features: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = _images(Path(folder), pictures, side)
        for reader in READERS:
            _extract(encoder, device, reader, images[:batch_size], batch_size)
            started = time.perf_counter()
            features[reader] = _extract(encoder, device, reader, images, batch_size)
            rates[reader] = pictures / (time.perf_counter() - started)
    axes: Axes = {"network": network, "pictures": pictures, "side": side, "B": batch_size}
    figures = [
        Figure("features extracted", reader, "pictures/s", Spread((rate,)), axes)
        for reader, rate in rates.items()
    ]
    pil, torchvision = features["pil"], features["torchvision"]
    apart = Spread((float((pil - torchvision).abs().max() / pil.abs().max()),))
    what = "largest difference of a feature, to the largest feature"
    asked = Requirement(what, "times", apart, at_most=CLOSE, axes=axes)
    nvjpeg = device.type == "cuda" and has_nvjpeg(device)
    return {**measured(figures, [asked]), "nvjpeg": nvjpeg}


def _images(folder: Path, count: int, side: int) -> list[CaptionedImage]:
    """`count` images of no more than DRAWN files."""
    files = draw_pictures(folder, min(count, DRAWN), side=side, seed=0)
    paths = itertools.islice(itertools.cycle(path for _, path in files), count)
    return [CaptionedImage(f"{row}.jpg", path, (), row) for row, path in enumerate(paths)]


def _extract(
    encoder: Encoder,
    device: torch.device,
    reader: str,
    images: Sequence[CaptionedImage],
    batch_size: int,
) -> Tensor:
    """Features [n, R, F] of the images, by way of a new cache."""
    with tempfile.TemporaryDirectory() as cache:
        way = ImageFeatures(
            encoder=encoder, device=device, cache_dir=cache, batch_size=batch_size, reader=reader,
            workers=READERS[reader],
        )  # fmt: skip
        return way.source(images)(torch.arange(len(images)))


if __name__ == "__main__":
    sys.exit(do_jobs(compare_readers, Path(sys.argv[1]), Path(sys.argv[2])))
