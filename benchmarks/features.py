"""suite=features: image files to features in the cache, beside the bare encoder's forward on
batches as large as the extraction's, and of the size at which it is fastest here.

Shapes: n images, B images a batch, R regions, F image feature.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.captions import captioned_images
from benchmarks.settings import READERS, FeaturesBenchmark
from benchmarks.suite import Run, SuiteResult
from benchmarks.timing import interleaved, paired_ratio
from captioner.build.components import build_encoder
from captioner.config import EncoderConfig
from captioner.data.captions import CaptionedImage
from captioner.data.images import load_image
from captioner.features.device_images import has_nvjpeg
from captioner.features.source import ImageFeatures
from captioner.models.encoder import Encoder

SHARE = 0.9
# Of the largest feature. CLOSE: TF32 or bfloat16 through fifty layers, pixels a level apart.
SAME, HALF, CLOSE = 1e-5, 1e-3, 0.05
BARE, FASTEST = "bare encoder", "bare encoder at its fastest"
SIZES, TRIED = (2, 4, 8, 16), 64  # batch sizes to find that in; images each is tried on
DRAWN = 512  # different image files at most


def features_suite(settings: FeaturesBenchmark, run: Run) -> SuiteResult:
    """Images a second of each reader and of the bare encoder, all over the same images."""
    kind, _, name = settings.chosen.partition("/")
    config = EncoderConfig(kind=kind, name=name, weights="random", output=settings.output)
    encoder = build_encoder(config, seed=run.seed).to(run.device).eval()
    count, size = settings.pictures, settings.picture_side
    with tempfile.TemporaryDirectory() as folder:
        if run.data_root is None:
            images = draw_images(Path(folder), count, size=size, seed=run.seed)
        else:
            images = captioned_images(count, data_root=run.data_root, seed=run.seed)
        kept = {"cache_dir": f"{folder}/cache", "cache_dtype": str(config.cache_dtype)}
        measured = _Measured(encoder, images, settings, run.device, kept)
        for reader in settings.readers:
            measured.extract(reader, settings.batch_size)  # a first block
        calls: dict[str, Callable[[], object]] = {BARE: measured.bare}
        calls[FASTEST] = partial(measured.forward, measured.fastest_size)
        calls |= {one: partial(measured.extract, one) for one in settings.readers}
        taken = interleaved(calls, repeats=run.repeats, device=run.device, warmup=0)
    result = SuiteResult(
        {
            "encoder": f"{kind}/{name}, random weights",
            "output": settings.output,
            "transform": str(encoder.transform),
            "data": "drawn" if run.data_root is None else "flickr8k",
            **{"pictures": count, "picture_side": size, "batch_size": settings.batch_size},
            "fastest_batch_size": measured.fastest_size,
            "workers": measured.reading["pil"].reading_processes,
            "nvjpeg": run.device.type == "cuda" and has_nvjpeg(run.device),
            "seed": run.seed,
        }
    )
    for one, spread in taken.items():
        result.add("features", one, "images/s", spread.map(lambda seconds: count / seconds))
    on_cpu = run.device.type == "cpu"
    for reader in settings.readers:
        for bare in (BARE, FASTEST) if on_cpu else ():
            ratio = paired_ratio(taken[bare], taken[reader])
            result.require(f"rate of {reader} to the {bare}'s", "times", ratio, at_least=SHARE)
        what = f"largest difference of a feature by {reader}, to the largest feature"
        most = SAME if settings.output == "pooled" else HALF
        most = most if reader == "pil" and on_cpu else CLOSE
        result.require(what, "times", measured.difference(reader), at_most=most)
    return result


def draw_images(folder: Path, count: int, *, size: int, seed: int) -> list[CaptionedImage]:
    """`count` images of at most DRAWN square JPEG files with a photograph's shapes and grain."""
    generator = np.random.default_rng([seed, 3])
    paths = [folder / f"{row}.jpg" for row in range(min(count, DRAWN))]
    for path in paths:
        coarse = generator.integers(0, 256, (size // 16, size // 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        grain = generator.normal(0, 6, (size, size, 3))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    chosen = itertools.islice(itertools.cycle(paths), count)
    return [CaptionedImage(f"{row}.jpg", path, (), row) for row, path in enumerate(chosen)]


class _Measured:
    """The encoder on images that already lie in memory, and on the same images in files."""

    def __init__(
        self,
        encoder: Encoder,
        images: Sequence[CaptionedImage],
        settings: FeaturesBenchmark,
        device: torch.device,
        kept: dict[str, Any],  # where, and as what
    ) -> None:
        self.encoder, self.images, self.cache = encoder, images, Path(kept["cache_dir"])
        self.batch_size = settings.batch_size
        by_path = {path: encoder.transform(load_image(path)) for path in {x.path for x in images}}
        tensors = torch.stack([by_path[image.path] for image in images]).to(device)
        self.tensors = tensors.contiguous(memory_format=torch.channels_last)
        source = partial(ImageFeatures, encoder=encoder, device=device, **kept)
        source = partial(source, batch_size=settings.batch_size, workers=settings.workers)
        self.reading = {reader: source(reader=reader) for reader in READERS}
        self.found: dict[str, Tensor] = {}
        sizes = {size for size in SIZES if size < self.batch_size} | {self.batch_size}
        calls = {str(size): partial(self.forward, size, TRIED) for size in sizes}
        taken = interleaved(calls, repeats=2, device=device)
        self.fastest_size = min(sizes, key=lambda size: min(taken[str(size)].values))

    @torch.inference_mode()
    def forward(self, batch_size: int, count: int | None = None) -> Tensor:
        return torch.cat([self.encoder(one) for one in self.tensors[:count].split(batch_size)])

    def bare(self) -> None:
        self.found[BARE] = self.forward(self.batch_size)

    def extract(self, reader: str, count: int | None = None) -> None:
        """The features [n, R, F] of the first images, into a cache that is empty before."""
        shutil.rmtree(self.cache, ignore_errors=True)
        images = self.images[:count]
        self.found[reader] = self.reading[reader].source(images)(torch.arange(len(images)))

    def difference(self, reader: str) -> float:
        """The largest difference to the bare encoder's features, to the largest feature."""
        bare, extracted = self.found[BARE].cpu().float(), self.found[reader].float()
        return float((bare - extracted).abs().max() / bare.abs().max())
