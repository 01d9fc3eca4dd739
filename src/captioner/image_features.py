"""How images enter a captioner: cached features, pictures for a trained encoder, or your own.

Shapes: I images, R regions, F image feature, S picture side.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import ImageSource, Pictures
from captioner.data.features import FeatureStore, extract_features, load_features
from captioner.errors import ConfigError
from captioner.models.encoder import Encoder


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
    pictures; without one the features come from the file `path`. `workers` are the
    processes that read pictures for a GPU.
    """

    encoder: Encoder | None
    device: torch.device
    path: str | None = None
    cache_dir: str = ".cache/features"
    batch_size: int = 32
    workers: int = 2

    @property
    def trained(self) -> bool:
        """Whether the encoder is part of the model."""
        return self.encoder is not None and self.encoder.trainable

    @functools.cached_property
    def fingerprint(self) -> str:
        """The frozen encoder's, read once: it goes through all the weights."""
        assert self.encoder is not None
        return self.encoder.fingerprint()

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
        return {"kind": "frozen", "name": self.encoder.name, "fingerprint": self.fingerprint}

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
        pixels = self.encoder.transform(picture).unsqueeze(0).to(self.device)
        return pixels if self.trained else self.encoder.to(self.device).eval()(pixels)

    def _store(self, images: Sequence[CaptionedImage]) -> FeatureStore:
        """The features of all images, extracted where the cache lacks them."""
        if self.encoder is None:
            return load_features(str(self.path), names=[image.name for image in images])
        encoder = self.encoder.to(self.device).eval()
        return extract_features(
            key=self.fingerprint,
            encode=lambda pictures: encoder(pictures.to(self.device)).cpu(),
            shape=(encoder.regions, encoder.feature_dim),
            transform=encoder.transform,
            images=[(image.name, image.path) for image in images],
            cache_dir=self.cache_dir,
            batch_size=self.batch_size,
            num_workers=self.reading_processes,
        )
