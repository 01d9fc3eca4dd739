"""Images read, resized and encoded in batches: what Pillow gives, and its errors."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captioner.data.images import load_image
from captioner.errors import ConfigError, ImageError
from captioner.features import device_images
from captioner.features.device_images import pixels_of, read_images, transform_batch
from captioner.features.encoding import encoded_ahead, encoded_blocks
from captioner.features.extraction import extract_features
from captioner.features.store import FeatureStore
from captioner.models.transforms import ImageTransform

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
CPU = torch.device("cpu")
TRANSFORM = ImageTransform(size=16, resize=20)
SIDES = [(75, 50), (50, 75), (75, 50), (61, 61), (40, 90), (16, 16)]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse shapes with grain, as photographs have them."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(smooth + draw.normal(0, 6, smooth.shape), 0, 255).astype("u1"))


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[str, Path]]:
    """Eleven JPEGs of several sides."""
    (tmp_path / "images").mkdir()
    found = []
    for row in range(11):
        path = tmp_path / "images" / f"{row:02}.jpg"
        photo(*SIDES[row % len(SIDES)], seed=row).save(path, quality=90)
        found.append((path.name, path))
    return found


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def encode(images: Tensor) -> Tensor:
    """A fixed little network: [B, 3, 16, 16] -> [B, 4, 5]."""
    assert images.is_contiguous(memory_format=torch.channels_last)
    weight = torch.linspace(-1, 1, 5 * 3 * 8 * 8).view(5, 3, 8, 8).sin()
    return torch.nn.functional.conv2d(images, weight, stride=8).flatten(2).transpose(1, 2)


def extract(files: list[tuple[str, Path]], cache: Path, **changes: Any) -> FeatureStore:
    how: dict[str, Any] = {"transform": TRANSFORM, "encode": encode, "device": CPU, "threads": 2}
    how.update(changes)
    return extract_features(
        key="k", encoded=functools.partial(encoded_ahead, **how), shape=(4, 5), images=files,
        cache_dir=cache, batch_size=4, progress=False,
    )  # fmt: skip


# -- reading ------------------------------------------------------------------------------------


def test_every_kind_of_image_has_pillows_pixels(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb, path = photo(30, 20), tmp_path / "images"
    path.mkdir()
    rgb.save(path / "a.jpg")
    rgb.save(path / "b.png")
    rgb.convert("CMYK").save(path / "c.jpg")
    rgb.convert("L").save(path / "d.jpg")
    rgb.save(path / "e.jpg", exif=turned)
    rgb.save(path / "f.jpg", progressive=True)
    with (path / "a.jpg").open("rb") as file:
        (path / "g.jpg").write_bytes(file.read() + b"and more")
    paths = sorted(path.iterdir())
    for one, pixels in zip(paths, read_images(paths, CPU, pool), strict=True):
        assert torch.equal(pixels, pixels_of(load_image(one))), one.name


def test_plain_jpegs_are_torchvisions(
    files: list[tuple[str, Path]], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(path: Path) -> None:
        raise AssertionError(f"{path} went to Pillow")

    monkeypatch.setattr(device_images, "load_image", never)
    assert len(read_images([path for _, path in files], CPU, pool)) == 11


def test_a_list_with_a_broken_image_is_decoded_one_by_one(
    files: list[tuple[str, Path]], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose decoder takes the whole list or none of it."""
    sizes: list[int] = []
    decode = device_images.decode_jpeg

    def on_gpu(data: list[Tensor], *, mode: Any, device: torch.device) -> list[Tensor]:
        sizes.append(len(data))
        return list(decode(data, mode=mode))

    monkeypatch.setattr(device_images, "decode_jpeg", on_gpu)
    monkeypatch.setattr(device_images, "has_nvjpeg", lambda device: True)
    tensors = [torch.frombuffer(bytearray(p.read_bytes()), dtype=torch.uint8) for _, p in files]
    tensors[2] = tensors[2][: len(tensors[2]) // 2]
    found = device_images._decoded(tensors, torch.device("cuda"), pool.map)
    assert sizes == [11, *[1] * 11]
    assert [row for row, pixels in enumerate(found) if pixels is None] == [2]


@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.9])
def test_a_broken_image_is_named_and_finished_rows_are_kept(
    files: list[tuple[str, Path]], tmp_path: Path, kept: float
) -> None:
    data = files[6][1].read_bytes()
    files[6][1].write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(ImageError, match=r"06\.jpg"):
        extract(files, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert np.load(folder / "done.npy").tolist() == [1] * 4 + [0] * 7
    files[6] = (files[6][0], tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match=r"nowhere\.jpg"):
        extract(files, tmp_path / "cache")


# -- resizing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [16, 20, "squash"])
def test_batches_are_what_single_images_are(interpolation: str, resize: Any) -> None:
    transform = ImageTransform(
        size=16, resize=resize, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    images = [photo(*sides, seed=row) for row, sides in enumerate(SIDES)]
    batch = transform_batch(transform, [pixels_of(one) for one in images])
    assert batch.is_contiguous(memory_format=torch.channels_last)
    levels = torch.stack([255 * (transform(a) - b) for a, b in zip(images, batch, strict=True)])
    assert levels.abs().max() < 1.01  # one level of 255: the order of the sums
    assert levels.abs().mean() < 0.1


def test_a_filter_that_torch_lacks_is_named() -> None:
    transform = ImageTransform(size=16, resize=20, interpolation="lanczos")
    with pytest.raises(ConfigError, match=r"bicubic.*lanczos.*encoder\.reader=pil"):
        transform_batch(transform, [pixels_of(photo(30, 20))])


# -- features -----------------------------------------------------------------------------------


def test_features_are_those_of_pillow(files: list[tuple[str, Path]], tmp_path: Path) -> None:
    found = extract(files, tmp_path / "cache")
    pillows = functools.partial(encoded_blocks, transform=TRANSFORM, encode=encode, num_workers=0)
    expected = extract_features(
        key="k", encoded=pillows, shape=(4, 5), images=files, cache_dir=tmp_path / "other",
        batch_size=4, progress=False,
    )  # fmt: skip
    assert found.names == expected.names
    apart = np.abs(found.features - expected.features).max()
    assert apart < 0.01 * np.abs(expected.features).max()


def test_resuming_computes_only_what_is_missing_with_the_same_bits(
    files: list[tuple[str, Path]], tmp_path: Path
) -> None:
    extract(files, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    complete = (folder / "features.npy").read_bytes()
    done = np.load(folder / "done.npy")
    done[5] = 0
    np.save(folder / "done.npy", done)
    sizes: list[int] = []

    def counted(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return encode(images)

    extract(files, tmp_path / "cache", encode=counted)
    assert sizes == [4]
    assert (folder / "features.npy").read_bytes() == complete


def test_the_next_blocks_are_read_while_one_is_encoded(
    files: list[tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    second = threading.Event()
    read = device_images.read_images

    def watched(paths: list[Path], *arguments: Any) -> list[Tensor]:
        begun.append(len(paths))
        if len(begun) == 2:
            second.set()
        return read(paths, *arguments)

    def waits(images: Tensor) -> Tensor:
        assert second.wait(10)  # the second block is begun before the first is encoded
        return encode(images)

    monkeypatch.setattr(device_images, "read_images", watched)
    extract(files, tmp_path / "cache", encode=waits)
    assert begun == [4, 4, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_ends_all_threads(
    files: list[tuple[str, Path]], tmp_path: Path, error: type[BaseException]
) -> None:
    before = threading.active_count()

    def failing(images: Tensor) -> Tensor:
        time.sleep(0.01)
        raise error

    with pytest.raises(error):
        extract(files, tmp_path / "cache", encode=failing)
    assert threading.active_count() == before


def test_flickr8ks_images_are_read_alike(flickr8k: Path, pool: ThreadPoolExecutor) -> None:
    paths = sorted((flickr8k / "Flicker8k_Dataset").iterdir())[:24]
    images = read_images(paths, CPU, pool)
    transform = ImageTransform(size=224, resize=256, mean=(0, 0, 0), std=(1, 1, 1))
    batch = transform_batch(transform, images)
    for path, pixels, ready in zip(paths, images, batch, strict=True):
        one = load_image(path)
        assert torch.equal(pixels, pixels_of(one))
        assert (255 * (transform(one) - ready)).abs().max() < 1.01
