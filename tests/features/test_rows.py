"""Rows of feature arrays: what is read, what stays out of memory, statistics in float64."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.errors import DataError
from captioner.features import rows as feature_rows
from captioner.features.rows import FeatureRows
from captioner.features.store import FeatureStore

IMAGES, REGIONS, DIM = 96, 64, 512  # 64 KB a row in half precision, 6 MB in all


def grid(count: int = IMAGES, regions: int = REGIONS, dim: int = DIM) -> np.ndarray:
    """[n, R, F] in half precision: means and deviations differ, one feature is constant."""
    draw = np.random.default_rng(1)
    values = draw.normal(draw.normal(0, 3, dim), draw.uniform(0.01, 4, dim), (count, regions, dim))
    values[:, :, 3] = 0.1
    return values.astype(np.float16)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with `grid`."""
    path = tmp_path_factory.mktemp("grid") / "features.npy"
    np.save(path, grid())
    return path


def store_of(features: np.ndarray) -> FeatureStore:
    return FeatureStore([f"{k}.jpg" for k in range(len(features))], features)


def mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("large", [1, 1 << 30])
def test_rows_are_those_of_the_array(
    path: Path, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_rows, "_LARGE", large)
    store, rows = store_of(mapped(path)), torch.tensor([5, 0, 95, 5])
    assert (store.stored_rows._file is not None) == (large == 1)
    expected = grid()[rows.numpy()]
    assert np.array_equal(store.gather(rows).numpy(), expected.astype(np.float32))
    kept = store.gather(rows, torch.float16)
    assert store.dtype == kept.dtype == torch.float16 and np.array_equal(kept.numpy(), expected)


def test_a_part_of_a_file_is_read_through_its_map(path: Path) -> None:
    for part in (mapped(path)[:40], mapped(path)[40:], mapped(path)[:, ::2], grid()):
        rows = FeatureRows(part)
        assert rows._file is None
        assert np.array_equal(rows(np.array([7, 1])), np.asarray(part)[[7, 1]])


def mapped_bytes(path: Path) -> int:
    """How much of the file counts as this process's memory."""
    maps = Path("/proc/self/smaps").read_text()
    pages = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss:\s+(\d+) kB", maps)
    return 1024 * sum(map(int, pages))


def test_memory_does_not_grow_with_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_rows, "_MOMENTS_BYTES", 2**19)
    monkeypatch.setattr("captioner.features.store._CHECK_BYTES", 2**20)
    features, rows = mapped(path), torch.arange(IMAGES)
    store, before = store_of(features), mapped_bytes(path)
    tracemalloc.start()
    for part in rows.split(4):
        store.gather(part)
    store.statistics()
    store.check_finite(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = features.nbytes
    assert mapped_bytes(path) - before < size / 8
    assert peak < size / 8  # numpy's arrays: rows are gathered in 256 kB, or 128
    np.asarray(features).sum(dtype=np.float64)  # as the map would have it
    assert mapped_bytes(path) - before > size / 2


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", grid(8))
    store = store_of(mapped(tmp_path / "features.npy"))
    with (tmp_path / "features.npy").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(DataError, match=r"features\.npy was cut off .* row 6 is gone"):
        store.gather(torch.tensor([0, 6]))


@pytest.mark.parametrize("rows", [None, torch.tensor([80, 2, 3, 41, 7]), torch.tensor([9])])
def test_statistics_of_a_grid_are_those_of_numpy(
    path: Path, rows: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_rows, "_MOMENTS_BYTES", 3 * 4 * REGIONS * DIM)  # three rows
    store = store_of(mapped(path))
    picked = grid() if rows is None else grid()[rows.numpy()]
    values = picked.reshape(-1, DIM).astype(np.float64)
    mean, std = store.statistics(rows)
    expected = values.std(0)
    assert expected[3] == 0
    expected[3] = 1
    apart = np.abs(mean.numpy() - values.mean(0))
    assert (apart < 1e-6 * (np.abs(values.mean(0)) + values.std(0)) + 1e-12).all()
    np.testing.assert_allclose(std.numpy(), expected, rtol=1e-6)


def test_statistics_of_pooled_features_have_the_bits_of_version_0_1() -> None:
    values = np.random.default_rng(2).normal(5, 2, (50, 1, 7)).astype(np.float32)
    mean, std = store_of(values).statistics()
    wide = values.reshape(-1, 7).astype(np.float64)
    expected = wide.sum(axis=0) / 50
    assert np.array_equal(mean.numpy(), expected.astype(np.float32))
    variance = np.square(wide - expected).sum(axis=0) / 50
    assert np.array_equal(std.numpy(), np.sqrt(variance).astype(np.float32))
