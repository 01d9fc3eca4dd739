"""suite=features: features from JPEG files to the cache, beside the bare encoder's forward.

The bare encoder runs twice: on batches as large as the extraction's blocks, and on batches of the
size at which it is fastest here, so that no badly chosen size flatters the extraction.
Shapes: B pictures a batch, S picture side, R regions, F image feature.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.drawn_pictures import draw_pictures
from benchmarks.record import Figure, Requirement, SuiteResult
from benchmarks.timing import Spread, interleaved, paired_ratio
from benchmarks.workload import captioned_images
from captioner.build.components import build_encoder
from captioner.config import EncoderConfig
from captioner.data.images import load_image
from captioner.features.encoding import encoded_blocks
from captioner.features.extraction import extract_features
from captioner.features.source import ImageFeatures
from captioner.models.encoder import Encoder

SHARE = 0.9
SAME = 1e-5  # of the largest feature
BARE, FASTEST = "bare encoder", "bare encoder at its fastest"
SIZES, TRIED = (2, 4, 8, 16), 64  # batch sizes to find that in; pictures each is tried on
LITE0, FALLBACK = "efficientnet_lite/lite0", "torchvision/mobilenet_v2"


def features_suite(
    *,
    encoder: str,
    pictures: int,
    picture_side: int,
    batch_size: int,
    workers: int,
    repeats: int,
    device: torch.device,
    data_root: str | None,
    seed: int,
) -> SuiteResult:
    """Time both sides over the same pictures; `encoder` is KIND/NAME, or auto."""
    kind, _, name = _chosen(encoder).partition("/")
    config = EncoderConfig(kind=kind, name=name, weights="random")
    network = build_encoder(config, seed=seed).to(device).eval()
    way = ImageFeatures(encoder=network, device=device, workers=workers)
    workers = way.reading_processes
    with tempfile.TemporaryDirectory() as folder:
        if data_root is None:
            files = draw_pictures(Path(folder), pictures, side=picture_side, seed=seed)
        else:
            images = captioned_images(pictures, data_root=data_root, seed=seed)
            files = [(image.name, image.path) for image in images]
        sides = _Sides(network, files, batch_size=batch_size, workers=workers, device=device)
        sides.warm_up()
        calls = {BARE: sides.bare, FASTEST: sides.bare_fastest, "extraction": sides.extraction}
        taken = interleaved(calls, repeats=repeats, device=device, warmup=0)
    figures = [
        Figure("features", side, "images/s", spread.map(lambda seconds: pictures / seconds))
        for side, spread in taken.items()
    ]
    requirements = [
        *(
            Requirement(
                f"rate of extraction to the {side}'s", "times",
                paired_ratio(taken[side], taken["extraction"]), at_least=SHARE,
            )
            for side in (BARE, FASTEST)
        ),
        Requirement(
            "largest difference of a feature, to the largest feature", "times",
            Spread((sides.difference(),)), at_most=SAME,
        ),
    ]  # fmt: skip
    settings = {
        "encoder": f"{kind}/{name}, random weights",
        "size": network.transform.size,
        "transform": str(network.transform),
        "data": "drawn" if data_root is None else "flickr8k",
        "picture_side": picture_side if data_root is None else None,
        "pictures": pictures,
        "batch_size": batch_size,
        "fastest_batch_size": sides.fastest_size,
        "workers": workers,
        "seed": seed,
    }
    return SuiteResult(settings, figures, requirements)


def _chosen(encoder: str) -> str:
    if encoder != "auto":
        return encoder
    return LITE0 if importlib.util.find_spec("timm") is not None else FALLBACK


class _Sides:
    """The encoder on pictures that already lie in memory, and on the same pictures in files."""

    def __init__(
        self,
        encoder: Encoder,
        files: Sequence[tuple[str, Path]],
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.encoder, self.files, self.device = encoder, files, device
        self.batch_size, self.workers = batch_size, workers
        tensors = torch.stack([encoder.transform(load_image(path)) for _, path in files])
        self.pictures = tensors.to(device).contiguous(memory_format=torch.channels_last)
        self.fastest_size = batch_size
        self.found: dict[str, Tensor] = {}

    def warm_up(self) -> None:
        """One block by extraction; the bare encoder in every batch size, to find its best."""
        self._extract(self.files[: self.batch_size])
        sizes = {size for size in SIZES if size < self.batch_size} | {self.batch_size}
        tried = self.pictures[:TRIED]
        calls = {str(size): functools.partial(self._forward, tried, size) for size in sizes}
        taken = interleaved(calls, repeats=2, device=self.device)
        self.fastest_size = min(sizes, key=lambda size: taken[str(size)].low)

    @torch.inference_mode()
    def _forward(self, pictures: Tensor, batch_size: int) -> Tensor:
        return torch.cat([self.encoder(batch) for batch in pictures.split(batch_size)])

    def bare(self) -> None:
        self.found["bare"] = self._forward(self.pictures, self.batch_size)

    def bare_fastest(self) -> None:
        self._forward(self.pictures, self.fastest_size)

    def extraction(self) -> None:
        self.found["extraction"] = self._extract(self.files)

    def _extract(self, files: Sequence[tuple[str, Path]]) -> Tensor:
        """The features [n, R, F] by way of a cache that is new each time."""
        with tempfile.TemporaryDirectory() as cache:
            store = extract_features(
                key="benchmark",
                encoded=functools.partial(
                    encoded_blocks,
                    transform=self.encoder.transform,
                    encode=lambda batch: self.encoder(batch.to(self.device)),
                    num_workers=self.workers,
                ),
                shape=(self.encoder.regions, self.encoder.feature_dim),
                images=files,
                cache_dir=cache,
                batch_size=self.batch_size,
                progress=False,
            )
            return store.gather(torch.arange(len(files)))

    def difference(self) -> float:
        """The largest difference between the two sides' features, to the largest feature."""
        bare, extracted = self.found["bare"].cpu(), self.found["extraction"]
        return float((bare - extracted).abs().max() / bare.abs().max())
