"""What images enter a captioner as: cached features, pixels, or features that the user computed.

Training may see several views of each image; rows name them as in data/dataset.py.

Letters: n images, I images of a batch, V views, R regions, F image feature, S image side.
"""

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import ImageSource
from captioner.data.images import load_image
from captioner.errors import ConfigError, DataError
from captioner.features.encoding import Encoded, ImageFiles, encoded_ahead, encoded_blocks
from captioner.features.extraction import extract_features, feature_cache
from captioner.features.store import FeatureStore, load_features
from captioner.models.encoder import Encoder
from captioner.models.transforms import ImageTransform

log = logging.getLogger(__name__)
KEPT_BYTES = 1 << 28  # images kept in memory: 20,000 of 64 x 64 pixels, 1,700 of 224 x 224
_COPIED = 64  # images whose features go to the device at a time
# Images [B, 3, S, S] as each view shows them.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "original": lambda images: images,
    "mirror": lambda images: images.flip(-1),
}


def choose_reader(wanted: str, device: torch.device) -> str:
    """pil or torchvision; auto is pil until torchvision's reader has been measured on a GPU."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        log.info(
            "images are read by Pillow: encoder.reader=torchvision decodes on the GPU, and has "
            "not been measured on one"
        )
    return "pil"


@dataclass(frozen=True)
class CachedFeatures:
    """An ImageSource over a store: `store_rows` [n] maps images to the store's rows, and to those
    of the `further` stores, of one view each, in the same order."""

    store: FeatureStore
    store_rows: Tensor
    further: tuple[FeatureStore, ...] = ()

    def __call__(self, rows: Tensor) -> Tensor:
        """Features [I, R, F] of image rows [I]."""
        if not self.further:
            return self.store.gather(self.store_rows[rows])
        views, store_rows = rows // len(self.store_rows), self.store_rows[rows % len(self)]
        features = torch.empty(len(rows), self.store.regions, self.store.feature_dim)
        for view, store in enumerate((self.store, *self.further)):
            places = (views == view).nonzero().squeeze(1)
            features[places] = store.gather(store_rows[places])
        return features

    def __len__(self) -> int:
        return len(self.store_rows)

    @property
    def nbytes(self) -> int:
        """What the features of all images in all views take, as `whole` gives them."""
        values = len(self) * self.store.regions * self.store.feature_dim
        return self.store.dtype.itemsize * (1 + len(self.further)) * values

    def whole(self, device: torch.device) -> Tensor:
        """The features of all images, view after view, [V n, R, F] on `device`; float16 stays."""
        count, dtype, stores = len(self), self.store.dtype, (self.store, *self.further)
        shape = (len(stores) * count, self.store.regions, self.store.feature_dim)
        features = torch.empty(shape, dtype=dtype, device=device)
        for view, store in enumerate(stores):
            for rows in torch.arange(count).split(_COPIED):
                first = view * count + int(rows[0])
                part = store.gather(self.store_rows[rows], dtype)
                features[first : first + len(rows)].copy_(part)
        return features

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [F] over all images, as the first view shows them."""
        return self.store.statistics(self.store_rows)


class DecodedImages:
    """An ImageSource that reads image files when a batch asks for them, and shows their `views`.

    `kept`: all of them, resized, take at most `keep_bytes`; then each is read once and kept.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        transform: ImageTransform,
        *,
        keep_bytes: int = KEPT_BYTES,
        views: Sequence[str] = ("original",),
    ) -> None:
        self.images, self.transform, self.views = images, transform, views
        shape = (len(images), transform.size, transform.size, 3)
        self.kept = math.prod(shape) <= keep_bytes
        # Untouched memory costs nothing yet.
        self._pixels = torch.empty(shape if self.kept else 0, dtype=torch.uint8)
        self._read = torch.zeros(len(images), dtype=torch.bool)

    def __call__(self, rows: Tensor) -> Tensor:
        """Images [I, 3, S, S]; ImageError names a file that cannot be read."""
        shown = self._original(rows % len(self.images))
        for number, view in enumerate(self.views):
            if view != "original":
                places = (rows // len(self.images) == number).nonzero().squeeze(1)
                shown[places] = VIEWS[view](shown[places])
        return shown

    def _original(self, rows: Tensor) -> Tensor:
        if not self.kept:
            return self.transform.normalise(torch.stack([self._load(row) for row in rows.tolist()]))
        for row in rows[~self._read[rows]].tolist():
            self._pixels[row] = self._load(row)
            self._read[row] = True
        return self.transform.normalise(self._pixels[rows])

    def _load(self, row: int) -> Tensor:
        return self.transform.pixels(load_image(self.images[row].path))


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """From image files to what the captioner takes.

    A frozen `encoder`'s features are computed once and cached in `cache_dir`; an encoder with a
    trainable part belongs to the model, which then takes images, or with `cached_stages` what the
    encoder's frozen stages make of them, computed once and cached alike; without an encoder the
    features come from the file `path`. `reader`: pil reads and resizes by Pillow and encodes in
    float32; torchvision does so on the device and encodes in bfloat16, and is cached apart, as are
    caches of another `cache_dtype`. `workers` are pil's processes for a GPU, or torchvision's
    threads. `expected_shape` is the (R, F) that a trained captioner takes.
    """

    encoder: Encoder | None
    device: torch.device
    path: str | None = None
    cache_dir: str = ".cache/features"
    batch_size: int = 32
    workers: int = 2
    reader: str = "pil"
    cache_dtype: str = "float32"
    cached_stages: bool = False
    expected_shape: tuple[int, int] | None = None

    @property
    def trained(self) -> bool:
        """Whether the encoder is part of the model."""
        return self.encoder is not None and self.encoder.trainable

    @functools.cached_property
    def split(self) -> bool:
        """Whether the model takes the cached output of the encoder's frozen stages; where that was
        asked for and cannot be, the log says why."""
        if not self.trained or not self.cached_stages:
            return False
        assert self.encoder is not None
        found, first = self.encoder.split(), self.encoder.first_trained
        if not found and first is not None:
            log.info(
                "encoder: %s cannot be cut before %s, because its stages do not run one after "
                "another: all of it is computed from the images at every step",
                self.encoder.name,
                first,
            )
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """That of what is cached: the frozen encoder's with its reader, or its frozen stages'.
        Computed once, as it reads all weights."""
        assert self.encoder is not None
        if self.split:
            return self.encoder.frozen_fingerprint()
        own = self.encoder.fingerprint()
        if self.reader == "pil":
            return own
        return hashlib.sha256(f"{own} {self.reader} bfloat16".encode()).hexdigest()

    @property
    def reading_processes(self) -> int:
        """How many processes read images; none on a CPU, whose threads each read their own."""
        return 0 if self.device.type == "cpu" else self.workers

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be used with these images."""
        if self.encoder is None:
            return {"kind": "features"}
        if self.trained:
            return {"kind": "trained", "name": self.encoder.name}
        known = {"kind": "frozen", "name": self.encoder.name, "fingerprint": self.fingerprint}
        return known if self.reader == "pil" else {**known, "reader": self.reader}

    def source(
        self, images: Sequence[CaptionedImage], *, views: Sequence[str] = ("original",)
    ) -> ImageSource:
        """A function from rows of `images` [I] to features [I, R, F], to images [I, 3, S, S] or to
        what the frozen stages make of them.

        DataError where the user's features are not of the expected shape.
        """
        if self.encoder is not None and self.trained and not self.split:
            return DecodedImages(images, self.encoder.transform, views=views)
        store, *further = (self._store(images, view) for view in views)
        shape = (store.regions, store.feature_dim)
        if self.expected_shape not in (None, shape) and not self.split:
            raise DataError(
                f"{self.path} holds features [R, F] = {list(shape)} of an image, and the captioner "
                f"was trained on {list(self.expected_shape or ())}"
            )
        rows = store.rows([image.name for image in images])
        return CachedFeatures(store, rows, tuple(further))

    def bytes_to_extract(self, images: Sequence[CaptionedImage], views: Sequence[str]) -> int:
        """What `source` would write into the cache."""
        if self.encoder is None or (self.trained and not self.split):
            return 0
        return sum(feature_cache(**self._cached_as(images, one)).missing_bytes() for one in views)

    def is_extracted(self, images: Sequence[CaptionedImage]) -> bool:
        """Whether `source` of these images finds all of their features, and encodes none."""
        if self.encoder is None:
            return True
        return not self.trained and feature_cache(**self._cached_as(images, "original")).complete()

    def shape(self, source: ImageSource) -> tuple[int, int]:
        """(R, F) of `source`'s features, or of what the encoder makes of its images."""
        if isinstance(source, CachedFeatures) and not self.split:
            return source.store.regions, source.store.feature_dim
        assert self.encoder is not None
        return self.encoder.regions, self.encoder.feature_dim

    def feature_dim(self, source: ImageSource) -> int:
        """F of `source`'s features, or of what the encoder makes of its images."""
        return self.shape(source)[1]

    @torch.inference_mode()
    def of_image(self, image: Any, view: str = "original") -> Tensor:
        """One PIL image's features [1, R, F] in a view, or [1, 3, S, S] when trained; ConfigError
        without an encoder."""
        if self.encoder is None:
            raise ConfigError(
                "this captioner was trained on your own features (encoder.kind=features): without "
                "the network that made them it cannot read an image"
            )
        if self.reader == "torchvision" and not self.trained:
            from captioner.features.device_images import pixels_of, transform_batch

            pixels = transform_batch(self.encoder.transform, [pixels_of(image).to(self.device)])
        else:
            pixels = self.encoder.transform(image).unsqueeze(0).to(self.device)
        pixels = VIEWS[view](pixels)
        if self.trained:
            return pixels
        features = self._encode(pixels)
        # Rounded as in the cache: an image has the same caption wherever it comes from.
        return features.to(getattr(torch, self.cache_dtype)).float()

    def _encode(self, images: Tensor) -> Tensor:
        """Features [B, R, F] of images [B, 3, S, S] by the frozen encoder, or what its frozen
        stages make of them, in float32."""
        encode = self._ready.frozen_output if self.split else self._ready
        half = self.reader == "torchvision"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            features: Tensor = encode(images.to(self.device))
        return features.float()

    @functools.cached_property
    def _ready(self) -> Encoder:
        """The encoder on its device, in evaluation mode."""
        assert self.encoder is not None
        return self.encoder.to(self.device).eval()

    def _encoded(self, view: str, blocks: Sequence[range], images: ImageFiles) -> Encoded:
        """Blocks of rows with their features in a view, read by the chosen reader."""
        assert self.encoder is not None
        own: dict[str, Any] = {
            "transform": self.encoder.transform,
            "encode": lambda batch: self._encode(VIEWS[view](batch)),
        }
        if self.reader == "torchvision":
            return encoded_ahead(blocks, images, device=self.device, threads=self.workers, **own)
        return encoded_blocks(blocks, images, num_workers=self.reading_processes, **own)

    def _store(self, images: Sequence[CaptionedImage], view: str) -> FeatureStore:
        """The features of all images in a view, extracted where that view's cache lacks them."""
        if self.encoder is None:
            return load_features(str(self.path), names=[image.name for image in images])
        return extract_features(
            **self._cached_as(images, view),
            encoded=functools.partial(self._encoded, view),
            batch_size=self.batch_size,
        )

    def _cached_as(self, images: Sequence[CaptionedImage], view: str) -> dict[str, Any]:
        """What names the cache of the images' features in a view."""
        assert self.encoder is not None
        key, shape = self.fingerprint, (self.encoder.regions, self.encoder.feature_dim)
        if self.split:
            shape = self.encoder.frozen_regions
        if view != "original":
            key = hashlib.sha256(f"{key} {view}".encode()).hexdigest()
        return {
            "key": key,
            "shape": shape,
            "images": [(image.name, image.path) for image in images],
            "cache_dir": self.cache_dir,
            "dtype": self.cache_dtype,
        }
