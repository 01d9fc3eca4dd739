"""A frozen encoder's features of all images of a data set, computed once and kept on disk.

Letters: n images, B images of a batch, R regions (1 when pooled), F image feature.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from captioner.data.captions import duplicates
from captioner.errors import DataError, ImageError, NumericsError
from captioner.features.cache import FeatureCache
from captioner.features.encoding import Encoded, ImageFiles
from captioner.features.store import FeatureStore
from captioner.progress import Progress

_FORMAT = 1
EncodeBlocks = Callable[[Sequence[range], ImageFiles], Encoded]


def extract_features(
    *,
    key: str,
    encoded: EncodeBlocks,
    shape: tuple[int, int],
    images: ImageFiles,
    cache_dir: Path | str,
    batch_size: int = 32,
    dtype: str = "float32",
    progress: bool = True,
) -> FeatureStore:
    """Features of all `images` (name, path), from the cache where they are there already.

    `key` stands for everything that decides an image's features (the encoder's fingerprint);
    `encoded` (`encoded_blocks`, `encoded_ahead`) computes them, `shape` = (R, F); `dtype`, float32
    or float16, is the file's. Work is resumed with the same bits; a second process waits for the
    first. Raises ImageError naming an unreadable image (finished rows are kept), DataError for a
    cache that cannot be written, NumericsError for features that are not finite.
    """
    if dtype not in ("float32", "float16"):
        raise DataError(f"features are kept as float32 or float16, not as {dtype}")
    if not images:
        raise DataError("there are no images to extract features from")
    names = [name for name, _ in images]
    if twice := duplicates(names):
        raise DataError(f"the image name {twice[0]} stands twice in the list of images")
    cache = feature_cache(key=key, shape=shape, images=images, cache_dir=cache_dir, dtype=dtype)
    if not cache.complete():
        with cache.lock():
            batch_size = cache.open(batch_size)
            _fill(cache, images, encoded, batch_size, progress)
    return FeatureStore(names, cache.features(), cache.folder)


def feature_cache(
    *, key: str, shape: tuple[int, int], images: ImageFiles, cache_dir: Path | str, dtype: str
) -> FeatureCache:
    """Where `extract_features` keeps, or would keep, the features of all `images`."""
    identity = {"format": _FORMAT, "encoder": key, "shape": list(shape), "dtype": dtype}
    identity["pictures"] = _image_set(images)  # a key of the format
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_dir) / digest[:16]
    return FeatureCache(folder, identity, (len(images), *shape), np.dtype(dtype))


def _image_set(images: ImageFiles) -> str:
    """A hash of the names and of each file's size and times: the inode's too, which a copying tool
    cannot set back when an image is replaced by another of the same size."""
    digest = hashlib.sha256()
    for name, path in images:
        try:
            stat = Path(path).stat()
        except OSError as error:
            raise ImageError(f"cannot read the image {path}: {error.strerror}") from error
        line = [name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _fill(
    cache: FeatureCache, images: ImageFiles, encoded: EncodeBlocks, batch_size: int, progress: bool
) -> None:
    """Compute the missing rows, a whole block of `batch_size` rows at a time, in order."""
    done = cache.done()
    blocks = [range(i, min(i + batch_size, len(done))) for i in range(0, len(done), batch_size)]
    blocks = [block for block in blocks if not done[block.start : block.stop].all()]
    start, show = len(done) - sum(map(len, blocks)), progress and bool(blocks)
    with (
        Progress(len(done), "features", units="images", done=start, show=show) as bar,
        contextlib.closing(encoded(blocks, images)) as found,
    ):
        for block, features in found:
            cache.write(block.start, _checked(features, block, images, cache))
            bar.update(len(block))


def _checked(
    features: np.ndarray, block: range, images: ImageFiles, cache: FeatureCache
) -> np.ndarray:
    """The features in the file's own precision; other shapes and what is not finite are refused."""
    expected = (len(block), *cache.shape[1:])
    if features.shape != expected:
        raise DataError(f"encode must return {list(expected)}, got {list(features.shape)}")
    # By torch, which is several times faster than numpy at half precision.
    stored = torch.from_numpy(features).to(getattr(torch, cache.dtype.name))
    finite = stored.isfinite().flatten(1).all(1).numpy()
    if not finite.all():
        name = images[block[int(np.argmin(finite))]][0]
        raise NumericsError(f"the features of {name} hold NaN or infinity as {cache.dtype}")
    return stored.numpy()
