from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from script_runner import Process, Scripts
from torch import Tensor

from captioner.errors import DataError, ImageError, NumericsError
from captioner.features.cache import FeatureCache
from captioner.features.encoding import encoded_blocks
from captioner.features.extraction import extract_features
from captioner.features.statistics import KeptStatistics
from captioner.features.store import FeatureStore, load_features
from captioner.models.transforms import ImageTransform

TRANSFORM = ImageTransform(size=16, resize="squash")


def encode(images: Tensor) -> Tensor:
    """A fixed little network: [B, 3, 16, 16] -> [B, 4, 5]."""
    assert images.is_contiguous(memory_format=torch.channels_last)
    weight = torch.linspace(-1, 1, 5 * 3 * 8 * 8).view(5, 3, 8, 8).sin()
    return torch.nn.functional.conv2d(images, weight, stride=8).flatten(2).transpose(1, 2)


def write_images(folder: Path, count: int) -> list[tuple[str, Path]]:
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    images = []
    for i in range(count):
        path = folder / f"{i:03}.png"
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        images.append((path.name, path))
    return images


def extract(images: Sequence[tuple[str, Path]], cache: Path, **changes: object) -> FeatureStore:
    how: dict = {"encode": encode, "transform": TRANSFORM, "num_workers": 0}
    how.update({name: changes.pop(name) for name in how if name in changes})
    settings: dict = {
        "key": "k",
        "encoded": functools.partial(encoded_blocks, **how),
        "shape": (4, 5),
        "images": images,
        "cache_dir": cache,
        "batch_size": 4,
        "progress": False,
    }
    return extract_features(**{**settings, **changes})


def folder_of(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


class Counter:
    """Counts the images of each call of `encode`."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return encode(images)


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_the_encoders(tmp_path: Path, workers: int) -> None:
    images = write_images(tmp_path / "images", 10)
    store = extract(images, tmp_path / "cache", num_workers=workers)
    assert store.names == [name for name, _ in images]
    assert (len(store), store.regions, store.feature_dim) == (10, 4, 5)
    for row in (0, 5, 9):
        expected = encode(
            TRANSFORM(Image.open(images[row][1]))[None].contiguous(
                memory_format=torch.channels_last
            )
        )
        torch.testing.assert_close(store.gather(torch.tensor([row])), expected)


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    images, counter = write_images(tmp_path / "images", 10), Counter()
    first = extract(images, tmp_path / "cache", encode=counter)
    again = extract(images, tmp_path / "cache", encode=counter)
    assert sum(counter.sizes) == 10
    assert isinstance(again.features, np.memmap)
    assert np.array_equal(first.features, again.features)


def test_the_caches_identity_is_that_of_version_0_1(tmp_path: Path) -> None:
    """The folder is named after it: another key or value, and no cache made since is found."""
    images = write_images(tmp_path / "images", 2)
    extract(images, tmp_path / "cache")
    folder = folder_of(tmp_path / "cache")
    identity = json.loads((folder / "meta.json").read_text())["identity"]
    lines = []
    for name, path in images:
        stat = path.stat()
        lines.append(json.dumps([name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]))
    expected = {"format": 1, "encoder": "k", "shape": [4, 5], "dtype": "float32"}
    expected["pictures"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert identity == expected
    digest = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()
    assert folder.name == digest[:16]


def test_whatever_changes_the_features_changes_the_cache(tmp_path: Path) -> None:
    images, cache = write_images(tmp_path / "images", 3), tmp_path / "cache"
    extract(images, cache)
    extract(images, cache, key="other weights")
    extract(images, cache, dtype="float16")
    extract(images[:2], cache)
    extract([images[1], images[0], images[2]], cache)
    extract([("other.png", images[0][1]), *images[1:]], cache)
    assert len(list(cache.iterdir())) == 6


def test_changed_image_is_noticed_though_size_and_time_stay(tmp_path: Path) -> None:
    images, cache = write_images(tmp_path / "images", 3), tmp_path / "cache"
    before = extract(images, cache).gather(torch.arange(3))
    path = images[1][1]
    stat = path.stat()
    Image.new("RGB", (24, 20), (255, 0, 0)).save(path)
    with path.open("ab") as file:
        file.write(b"\0" * (stat.st_size - path.stat().st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    after = extract(images, cache).gather(torch.arange(3))
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.equal(before[1], after[1])


def test_unreadable_image_is_named_and_finished_rows_are_kept(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 10)
    whole = images[6][1].read_bytes()
    images[6][1].write_bytes(whole[:100])
    for workers in (0, 1):
        with pytest.raises(ImageError, match=r"006\.png"):
            extract(images, tmp_path / "cache", num_workers=workers)
        done = np.load(folder_of(tmp_path / "cache") / "done.npy")
        assert done.tolist() == [1] * 4 + [0] * 6
    images[6] = (images[6][0], tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        extract(images, tmp_path / "cache")


@pytest.mark.parametrize("file", ["features.npy", "done.npy", "meta.json"])
@pytest.mark.parametrize("kept", [0, 40, 0.6])
def test_damaged_cache_is_rebuilt(tmp_path: Path, file: str, kept: float) -> None:
    images, cache = write_images(tmp_path / "images", 10), tmp_path / "cache"
    expected = extract(images, cache).gather(torch.arange(10))
    path = folder_of(cache) / file
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    assert torch.equal(extract(images, cache).gather(torch.arange(10)), expected)
    path.unlink()
    assert torch.equal(extract(images, cache).gather(torch.arange(10)), expected)


def test_resuming_keeps_the_first_runs_batches(tmp_path: Path) -> None:
    images, counter = write_images(tmp_path / "images", 10), Counter()
    extract(images, tmp_path / "cache")
    folder = folder_of(tmp_path / "cache")
    complete = (folder / "features.npy").read_bytes()
    done = np.load(folder / "done.npy")
    done[5] = 0
    np.save(folder / "done.npy", done)
    extract(images, tmp_path / "cache", encode=counter, batch_size=7)
    assert sum(counter.sizes) == 4
    assert (folder / "features.npy").read_bytes() == complete


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """PyTorch's thread count, set to the test's parameter and set back."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
def test_threads_share_the_blocks_and_leave_the_count_alone(tmp_path: Path, threads: int) -> None:
    images = write_images(tmp_path / "images", 50)
    counts, used = set(), set()

    def watched(batch: Tensor) -> Tensor:
        counts.add(torch.get_num_threads())
        used.add(threading.get_ident())
        time.sleep(0.01)
        return encode(batch)

    store = extract(images, tmp_path / "cache", encode=watched)
    assert counts == {1} and len(used) == threads
    begun_later: list[int] = []
    thread = threading.Thread(target=lambda: begun_later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), *begun_later) == (threads, threads)
    beside = extract(images, tmp_path / "beside", num_workers=1)
    torch.testing.assert_close(torch.tensor(store.features), torch.tensor(beside.features))


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_blocks_have_the_same_bits_in_any_number_of_threads(tmp_path: Path, threads: int) -> None:
    images = write_images(tmp_path / "images", 50)
    together = extract(images, tmp_path / "together")
    torch.set_num_threads(1)
    assert np.array_equal(extract(images, tmp_path / "alone").features, together.features)


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_one_thread_ends_all(
    tmp_path: Path, threads: int, error: type[BaseException]
) -> None:
    images, calls, before = write_images(tmp_path / "images", 50), [], threading.active_count()

    def failing(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        if len(calls) == 10:
            raise error
        time.sleep(0.02)
        return encode(batch)

    with pytest.raises(error):
        extract(images, tmp_path / "cache", encode=failing)
    assert len(calls) < 20
    done = np.load(folder_of(tmp_path / "cache") / "done.npy")
    assert 4 <= done.sum() <= sum(calls) and done[: done.sum()].all()
    assert threading.active_count() == before


SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
from test_extraction import encode, extract

def slowly(images):
    print("batch", flush=True)
    time.sleep(0.1)
    return encode(images)

images = [(path.name, path) for path in sorted(Path(sys.argv[1]).iterdir())]
how = {"num_workers": int(sys.argv[4]), "dtype": sys.argv[5]}
extract(images, Path(sys.argv[2]), encode=slowly, **how)
print("finished", flush=True)
"""


Start = Callable[..., Process]


@pytest.fixture
def start(scripts: Scripts, tmp_path: Path) -> Start:
    """Begin an extraction whose network takes its time."""
    program = tmp_path / "program.py"
    program.write_text(SCRIPT)

    def begin(images: Path, cache: Path, workers: int = 0, dtype: str = "float32") -> Process:
        arguments = [str(images), str(cache), str(Path(__file__).parent), str(workers), dtype]
        return scripts.start(tmp_path, program, arguments)

    return begin


@pytest.mark.parametrize(("workers", "dtype"), [(0, "float32"), (1, "float32"), (0, "float16")])
def test_killed_and_resumed_has_the_same_bits(
    tmp_path: Path, workers: int, dtype: str, start: Start
) -> None:
    images = write_images(tmp_path / "images", 50)
    extract(images, tmp_path / "whole", num_workers=workers, dtype=dtype)
    process = start(tmp_path / "images", tmp_path / "cache", workers, dtype)
    process.wait_until(lambda: process.stdout.count("batch") >= (8 if workers == 0 else 4))
    process.kill()
    folder = folder_of(tmp_path / "cache")
    done = np.load(folder / "done.npy")
    assert 12 <= done.sum() < 50
    counter = Counter()
    extract(images, tmp_path / "cache", encode=counter, num_workers=workers, dtype=dtype)
    assert sum(counter.sizes) == 50 - done.sum()
    for file in ("features.npy", "done.npy"):
        uninterrupted = folder_of(tmp_path / "whole") / file
        assert (folder / file).read_bytes() == uninterrupted.read_bytes()


def test_two_processes_share_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: Start
) -> None:
    images, counter = write_images(tmp_path / "images", 40), Counter()
    process = start(tmp_path / "images", tmp_path / "cache")
    process.wait_until(lambda: process.stdout == "batch\n")
    with caplog.at_level(logging.WARNING):
        store = extract(images, tmp_path / "cache", encode=counter)
    assert process.wait(timeout=60) == 0, process.stderr
    assert process.stdout.endswith("finished\n")
    assert counter.sizes == [] and "waiting" in caplog.text
    expected = extract(images, tmp_path / "alone")
    assert np.array_equal(store.features, expected.features)


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the feature cache"):
        extract(write_images(tmp_path / "images", 2), tmp_path / "file")


def test_wrong_features_are_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    with pytest.raises(DataError, match=r"\[3, 4, 6\], got \[3, 4, 5\]"):
        extract(images, tmp_path / "a", shape=(4, 6))

    def broken(batch: Tensor) -> Tensor:
        features = encode(batch)
        features[1:, 2, 3] = 1e6  # of two images the second, of one none
        return features

    assert extract(images, tmp_path / "b", encode=broken).features.max() == 1e6
    with pytest.raises(NumericsError, match=r"001\.png .* float16"):
        extract(images, tmp_path / "c", encode=broken, dtype="float16")
    with pytest.raises(DataError, match="int8"):
        extract(images, tmp_path / "d", dtype="int8")
    with pytest.raises(DataError, match="no images"):
        extract([], tmp_path / "e")
    with pytest.raises(DataError, match=r"000\.png stands twice"):
        extract([images[0], images[0]], tmp_path / "f")


def test_half_precision_cache_gathers_float32(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    full = extract(images, tmp_path / "cache").gather(torch.arange(3))
    half = extract(images, tmp_path / "cache", dtype="float16").gather(torch.arange(3))
    assert half.dtype == torch.float32 and torch.equal(half, full.half().float())


def store_of(count: int = 7, regions: int = 3, dim: int = 4) -> FeatureStore:
    values = np.random.default_rng(1).normal(5, 2, (count, regions, dim)).astype(np.float32)
    return FeatureStore([f"{i}.jpg" for i in range(count)], values)


def test_gather_and_rows() -> None:
    store = store_of()
    rows = store.rows(["4.jpg", "0.jpg", "4.jpg"])
    assert rows.tolist() == [4, 0, 4]
    assert torch.equal(store.gather(rows), torch.from_numpy(store.features)[rows])
    with pytest.raises(DataError, match=r"2 of 3 images, the first is 9\.jpg"):
        store.rows(["9.jpg", "1.jpg", "8.jpg"])


def test_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.features.rows._CHUNK_BYTES", 200)  # several chunks
    store = store_of()
    store.features[:, :, 2] = 0.1
    for rows in (None, torch.tensor([1, 2, 6])):
        picked = torch.from_numpy(store.features).double()
        picked = (picked if rows is None else picked[rows]).flatten(0, 1)
        mean, std = store.statistics(rows)
        expected = picked.std(0, unbiased=False)
        expected[2] = 1
        torch.testing.assert_close(mean, picked.mean(0).float())
        torch.testing.assert_close(std, expected.float())
    with pytest.raises(DataError, match="at least one"):
        store.statistics(torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("sidecar", ["json", "txt"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_precomputed_npy(tmp_path: Path, sidecar: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    names = ["a.jpg", "b c.jpg", "ü.jpg"]
    np.save(tmp_path / "f.npy", values)
    text = json.dumps(names) if sidecar == "json" else "\n".join(names) + "\n"
    (tmp_path / f"f.names.{sidecar}").write_text(text, encoding="utf-8")
    store = load_features(tmp_path / "f.npy", names=["ü.jpg", "a.jpg"])
    found = store.gather(store.rows(["ü.jpg", "a.jpg"]))
    assert found.dtype == torch.float32
    assert found.numpy().tolist() == values.reshape(3, -1, 4)[[2, 0]].tolist()


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_precomputed_safetensors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {f"{i}.jpg": np.full(shape, i, np.float16) for i in range(4)}
    save_file(tensors, tmp_path / "each.safetensors")
    store = load_features(tmp_path / "each.safetensors", names=["3.jpg", "1.jpg"])
    assert store.regions == (1 if len(shape) == 1 else 2)
    assert store.gather(store.rows(["1.jpg", "3.jpg"]))[:, 0, 0].tolist() == [1, 3]
    together = {"features": np.stack(list(tensors.values()))}
    metadata = {"names": json.dumps(list(tensors))}
    save_file(together, tmp_path / "one.safetensors", metadata=metadata)
    store = load_features(tmp_path / "one.safetensors", names=["2.jpg"])
    assert store.gather(store.rows(["2.jpg"]))[0, 0].tolist() == [2] * 4


def save_npy(folder: Path, values: np.ndarray, names: Sequence[str]) -> Path:
    np.save(folder / "f.npy", values)
    (folder / "f.names.json").write_text(json.dumps(names))
    return folder / "f.npy"


def test_precomputed_features_that_cannot_be_used(tmp_path: Path) -> None:
    good = np.ones((2, 4), np.float32)
    with pytest.raises(DataError, match=r"lacks .* 2 of 3 images, the first is c"):
        load_features(save_npy(tmp_path, good, ["a", "b"]), names=["c", "a", "d"])
    bad = good.copy()
    bad[1, 2] = np.nan
    with pytest.raises(DataError, match="features of b hold NaN"):
        load_features(save_npy(tmp_path, bad, ["a", "b"]), names=["a"])
    with pytest.raises(DataError, match=r"2 rows but 3 image names"):
        load_features(save_npy(tmp_path, good, ["a", "b", "c"]), names=["a"])
    with pytest.raises(DataError, match="a stands twice"):
        load_features(save_npy(tmp_path, good, ["a", "a"]), names=["a"])
    with pytest.raises(DataError, match=r"got \[2, 1, 1, 4\]"):
        load_features(save_npy(tmp_path, good[:, None, None], ["a", "b"]), names=["a"])
    with pytest.raises(DataError, match="int64"):
        load_features(save_npy(tmp_path, np.ones((2, 4), np.int64), ["a", "b"]), names=["a"])
    with pytest.raises(DataError, match=r"names\.json: \[0\] must be text, found 1"):
        load_features(save_npy(tmp_path, good, [1, 2]), names=["a"])  # type: ignore[list-item]
    (tmp_path / "f.names.json").unlink()
    with pytest.raises(DataError, match=r"f\.names\.json or f\.names\.txt"):
        load_features(tmp_path / "f.npy", names=["a"])
    with pytest.raises(DataError, match="no features file"):
        load_features(tmp_path / "g.npy", names=["a"])
    (tmp_path / "f.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=r"\.npy or \.safetensors"):
        load_features(tmp_path / "f.pkl", names=["a"])


def test_precomputed_safetensors_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"a": np.ones(4, np.float32), "b": np.ones(5, np.float32)}, path)
    with pytest.raises(DataError, match=r"tensor b is \[5\]"):
        load_features(path, names=["a", "b"])
    with pytest.raises(DataError, match="1 of 2 images, the first is z"):
        load_features(path, names=["a", "z"])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"f\.safetensors"):
        load_features(path, names=["a"])


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_npy_with_code_is_refused(tmp_path: Path) -> None:
    objects = np.array([Bomb(tmp_path / "ran")], dtype=object)
    np.save(tmp_path / "f.npy", objects, allow_pickle=True)
    (tmp_path / "f.names.json").write_text('["a"]')
    with pytest.raises(DataError, match="cannot read"):
        load_features(tmp_path / "f.npy", names=["a"])
    assert not (tmp_path / "ran").exists()


def test_statistics_are_kept_with_the_cache_and_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def store() -> FeatureStore:
        values = np.random.default_rng(0).normal(size=(4, 1, 3)).astype(np.float32)
        return FeatureStore([f"{i}.jpg" for i in range(4)], values, tmp_path)

    rows = torch.tensor([0, 2, 3])
    first, others = store().statistics(rows), store().statistics()
    kept = sorted(tmp_path.glob(KeptStatistics.PATTERN))
    assert len(kept) == 2 and not torch.equal(first[0], others[0])
    refused = store()
    monkeypatch.setattr(refused, "stored_rows", None)
    assert all(map(torch.equal, refused.statistics(rows), first))
    for file in kept:
        file.write_bytes(file.read_bytes()[:-30])
    assert all(map(torch.equal, store().statistics(rows), first))
    assert caplog.text.count("damaged and made anew") == 1
    cache = FeatureCache(tmp_path, {}, (4, 1, 3), np.dtype(np.float32))
    with cache.lock():
        cache.open(2)
    assert not list(tmp_path.glob(KeptStatistics.PATTERN))
