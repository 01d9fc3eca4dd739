"""Several views of an image: a cache each, and what rows name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.build.components import build_encoder, image_features, refuse_uneven_grid
from captioner.config import EncoderConfig
from captioner.data.captions import CaptionedImage
from captioner.errors import ConfigError, DataError
from captioner.features.source import CachedFeatures, ImageFeatures
from captioner.models.encoder import Encoder

CPU = torch.device("cpu")
BOTH = ("original", "mirror")


@pytest.fixture
def images(tmp_path: Path) -> list[CaptionedImage]:
    """Five images."""
    (tmp_path / "images").mkdir()
    found = []
    for row in range(5):
        values = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        path = tmp_path / "images" / f"{row}.png"
        Image.fromarray(values).save(path)
        found.append(CaptionedImage(name=path.name, path=path, captions=("a",), image_id=row))
    return found


def configured(folder: Path, **changes: object) -> EncoderConfig:
    settings = {"kind": "plain", "name": "plain_small", "weights": "random", "size": 32}
    settings |= {"output": "grid", "batch_size": 2, "cache_dir": str(folder / "cache"), **changes}
    return EncoderConfig(**settings)  # type: ignore[arg-type]


def features_of(folder: Path, **changes: object) -> ImageFeatures:
    return image_features(configured(folder, **changes), seed=0, device=CPU)


def cached(features: ImageFeatures, images: list[CaptionedImage], *views: str) -> CachedFeatures:
    source = features.source(images, views=views)
    assert isinstance(source, CachedFeatures)
    return source


def caches(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache").iterdir()}


def test_each_view_has_a_cache_of_its_own(images: list[CaptionedImage], tmp_path: Path) -> None:
    features = features_of(tmp_path)
    alone = cached(features, images, "original")
    before = caches(tmp_path)
    source = cached(features, images, *BOTH)
    assert len(before) == 1 and len(caches(tmp_path)) == 2 and caches(tmp_path) > before
    assert source.store.dtype == torch.float16
    encoder = features.encoder
    assert isinstance(encoder, Encoder)
    read = torch.stack([encoder.transform(Image.open(image.path)) for image in images])
    with torch.no_grad():
        expected = torch.cat([encoder(read), encoder(read.flip(-1))])
    rows = torch.tensor([3, 7, 0, 8])
    found = source(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected[rows], rtol=1e-3, atol=1e-3)
    assert torch.equal(found[[0, 2]], alone(torch.tensor([3, 0])))
    assert torch.equal(source.statistics()[0], alone.statistics()[0])
    # A random network sees its mirror image differently, not only in another order.
    assert not torch.equal(found[0], found[3])

    encoder.forward = None  # type: ignore[assignment]  # nothing is computed again
    assert torch.equal(cached(features, images, *BOTH)(rows), found)


def test_the_whole_goes_to_a_device_as_it_is_kept(
    images: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.features.source._COPIED", 2)
    for dtype in (torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        source = cached(features_of(tmp_path, cache_dtype=name), images[::-1], *BOTH)
        whole = source.whole(CPU)
        assert whole.dtype == dtype and source.nbytes == whole.nbytes
        assert torch.equal(whole.float(), source(torch.arange(10)))


def test_a_grid_is_kept_in_half_precision_and_a_pooled_feature_in_full(tmp_path: Path) -> None:
    assert configured(tmp_path).cache_dtype == "float16"
    assert configured(tmp_path, output="pooled").cache_dtype == "float32"
    assert configured(tmp_path, train_from="stage1").cache_dtype == "float32"
    assert configured(tmp_path, cache_dtype="float32").cache_dtype == "float32"


def test_an_image_alone_is_rounded_as_in_the_cache(
    images: list[CaptionedImage], tmp_path: Path
) -> None:
    features = features_of(tmp_path)
    found = features.of_image(Image.open(images[2].path))
    assert torch.equal(found, found.half().float())
    cache = cached(features, images, "original")(torch.tensor([2]))
    torch.testing.assert_close(found, cache, rtol=1e-3, atol=1e-4)


def test_features_of_another_shape_are_refused(
    images: list[CaptionedImage], tmp_path: Path
) -> None:
    np.save(tmp_path / "own.npy", np.ones((5, 4, 6), np.float32))
    names = "\n".join(image.name for image in images)
    (tmp_path / "own.names.txt").write_text(names)
    own = configured(tmp_path, kind="features", path=str(tmp_path / "own.npy"))
    features = image_features(own, seed=0, device=CPU)
    assert features.shape(features.source(images)) == (4, 6)
    trained = dataclasses.replace(features, expected_shape=(9, 6))
    with pytest.raises(DataError, match=r"own\.npy .* \[4, 6\] .* trained on \[9, 6\]"):
        trained.source(images)


@pytest.mark.parametrize("grid_size", [None, 1, 2, 4])
def test_grid_sizes_that_divide_the_grid(tmp_path: Path, grid_size: int | None) -> None:
    refuse_uneven_grid(build_encoder(configured(tmp_path, grid_size=grid_size), seed=0))


def test_a_grid_size_that_does_not_divide_the_grid_is_refused(tmp_path: Path) -> None:
    encoder = build_encoder(configured(tmp_path, grid_size=3), seed=0)
    with pytest.raises(ConfigError, match=r"grid_size=3 must divide .* \[4, 4\] .* 32 x 32"):
        refuse_uneven_grid(encoder)
