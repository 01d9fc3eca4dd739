"""How images enter a captioner: cached features, pictures for a trained encoder, or your own.

Shapes: I images, R regions, F image feature, S picture side.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import ImageSource
from captioner.errors import ConfigError
from captioner.features.batch_transform import transform_batch
from captioner.features.encoding import Encoded, Images, encoded_ahead, encoded_blocks
from captioner.features.extraction import FeatureStore, extract_features, load_features
from captioner.features.jpeg import pixels_of
from captioner.features.pixels import Pictures
from captioner.models.encoder import Encoder

log = logging.getLogger(__name__)


def choose_reader(wanted: str, device: torch.device) -> str:
    """pil or torchvision; auto is pil until torchvision's reader has been measured on a GPU."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        log.info(
            "pictures are read by Pillow: encoder.reader=torchvision decodes on the GPU, and has "
            "not been measured on one"
        )
    return "pil"


@dataclass(frozen=True)
class CachedFeatures:
    """An ImageSource over a store: `store_rows` says where each image's features lie in it."""

    store: FeatureStore
    store_rows: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Features [I, R, F] of image rows [I]."""
        return self.store.gather(self.store_rows[rows])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [F] over all images."""
        return self.store.statistics(self.store_rows)


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """The way from picture files to what the captioner takes.

    With a frozen `encoder`, which must then stay as it is, its features are computed once and
    cached in `cache_dir`; an encoder with a trainable part belongs to the model, which then takes
    pictures; without one the features come from the file `path`. `reader`, as chosen by
    `choose_reader`: pil reads and resizes by Pillow and encodes in float32; torchvision does so on
    the device and encodes in bfloat16, so that the features differ a little and are cached apart.
    `workers` are pil's processes for a GPU, or torchvision's threads.
    """

    encoder: Encoder | None
    device: torch.device
    path: str | None = None
    cache_dir: str = ".cache/features"
    batch_size: int = 32
    workers: int = 2
    reader: str = "pil"

    @property
    def trained(self) -> bool:
        """Whether the encoder is part of the model."""
        return self.encoder is not None and self.encoder.trainable

    @functools.cached_property
    def fingerprint(self) -> str:
        """The frozen encoder's with its reader, read once: it goes through all the weights."""
        assert self.encoder is not None
        own = self.encoder.fingerprint()
        if self.reader == "pil":
            return own
        return hashlib.sha256(f"{own} {self.reader} bfloat16".encode()).hexdigest()

    @property
    def reading_processes(self) -> int:
        """How many processes read pictures; none on a CPU, whose threads each read their own."""
        return 0 if self.device.type == "cpu" else self.workers

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must find again to be used with the same images."""
        if self.encoder is None:
            return {"kind": "features"}
        if self.trained:
            return {"kind": "trained", "name": self.encoder.name}
        known = {"kind": "frozen", "name": self.encoder.name, "fingerprint": self.fingerprint}
        return known if self.reader == "pil" else {**known, "reader": self.reader}

    def source(self, images: Sequence[CaptionedImage]) -> ImageSource:
        """A function from rows of `images` [I] to features [I, R, F] or pictures [I, 3, S, S]."""
        if self.encoder is not None and self.trained:
            return Pictures(images, self.encoder.transform)
        store = self._store(images)
        return CachedFeatures(store, store.rows([image.name for image in images]))

    def feature_dim(self, source: ImageSource) -> int:
        """F of what `source` leads to."""
        if isinstance(source, CachedFeatures):
            return source.store.feature_dim
        assert self.encoder is not None
        return self.encoder.feature_dim

    @torch.inference_mode()
    def of_picture(self, picture: Any) -> Tensor:
        """What the captioner takes of one PIL picture: [1, R, F], or [1, 3, S, S] when trained.

        ConfigError when there is no encoder that could read it.
        """
        if self.encoder is None:
            raise ConfigError(
                "this captioner was trained on your own features (encoder.kind=features): without "
                "the network that made them it cannot read a picture"
            )
        if self.reader == "torchvision" and not self.trained:
            pixels = transform_batch(self.encoder.transform, [pixels_of(picture).to(self.device)])
        else:
            pixels = self.encoder.transform(picture).unsqueeze(0).to(self.device)
        return pixels if self.trained else self._encode(pixels)

    def _encode(self, pictures: Tensor) -> Tensor:
        """Features [B, R, F] of pictures [B, 3, S, S] by the frozen encoder, in float32."""
        half = self.reader == "torchvision"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            features: Tensor = self._ready(pictures.to(self.device))
        return features.float()

    @functools.cached_property
    def _ready(self) -> Encoder:
        """The encoder where and as it computes."""
        assert self.encoder is not None
        return self.encoder.to(self.device).eval()

    def _encoded(self, blocks: Sequence[range], images: Images) -> Encoded:
        """Blocks of rows with their features, by way of the reader."""
        assert self.encoder is not None
        if self.reader == "torchvision":
            return encoded_ahead(
                blocks, images, transform=self.encoder.transform, encode=self._encode,
                device=self.device, threads=self.workers,
            )  # fmt: skip
        return encoded_blocks(
            blocks, images, transform=self.encoder.transform, encode=self._encode,
            num_workers=self.reading_processes,
        )  # fmt: skip

    def _store(self, images: Sequence[CaptionedImage]) -> FeatureStore:
        """The features of all images, extracted where the cache lacks them."""
        if self.encoder is None:
            return load_features(str(self.path), names=[image.name for image in images])
        return extract_features(
            key=self.fingerprint,
            encoded=self._encoded,
            shape=(self.encoder.regions, self.encoder.feature_dim),
            images=[(image.name, image.path) for image in images],
            cache_dir=self.cache_dir,
            batch_size=self.batch_size,
        )
