"""Checkpoints come back whole or are refused with a sentence; nothing in them is ever executed."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from captioner.errors import CheckpointError, DataError
from captioner.training.checkpoint import (
    FORMAT,
    VERSION,
    Checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)


def make() -> Checkpoint:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(40))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.ones(40)
    optimizer.step()
    return Checkpoint(
        model={"weight": torch.randn(3, 4), "half": torch.ones(2, dtype=torch.bfloat16)},
        texts={"vocabulary": '{"words": ["été"]}'},
        scores={"BLEU-4": 12.5},
        training={"optimizer": optimizer.state_dict(), "progress": {"step": 3, "best": None}},
    )


def write(path: Path, **changes: object) -> None:
    """A checkpoint file with other entries than it should have; None leaves an entry out."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": {},
        "texts": {},
        "scores": {},
        "training": None,
        **changes,
    }
    torch.save({k: v for k, v in content.items() if v != "left out"}, path)


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def test_large_weights_are_finite(tmp_path: Path) -> None:
    """Though their sum is not."""
    large = {"w": torch.full((8,), 3e38), "half": torch.full((8,), 6e4).half()}
    write(tmp_path / "x.pt", model=large)
    assert torch.equal(load_checkpoint(tmp_path / "x.pt").model["w"], large["w"])


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    """A small file can stand for gigabytes, whose checksum would be computed."""
    write(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, part in parts.items():
            packed.writestr(name, part)
    with pytest.raises(CheckpointError, match=r"x\.pt is truncated.*its parts are compressed"):
        load_checkpoint(tmp_path / "x.pt")


def test_everything_comes_back_on_the_cpu(tmp_path: Path) -> None:
    checkpoint = make()
    save_checkpoint(tmp_path / "deep/er/x.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "deep/er/x.pt")
    assert loaded.texts == checkpoint.texts and loaded.scores == checkpoint.scores
    assert list(loaded.model) == list(checkpoint.model)
    for name, tensor in checkpoint.model.items():
        assert torch.equal(loaded.model[name], tensor) and loaded.model[name].device.type == "cpu"
    assert loaded.training is not None and checkpoint.training is not None
    assert loaded.training["progress"] == {"step": 3, "best": None}
    state, expected = (c.training["optimizer"]["state"][0] for c in (loaded, checkpoint))
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_a_gpu_saved_loads_on_the_cpu(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.pt", Checkpoint({"w": torch.ones(2, device="cuda")}, {}))
    assert load_checkpoint(tmp_path / "x.pt").model["w"].device.type == "cpu"
    assert load_checkpoint(tmp_path / "x.pt", device="cuda").model["w"].device.type == "cuda"


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match=f"no checkpoint at {path}"):
            load_checkpoint(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pt", make())
    whole = (tmp_path / "whole.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    lengths = {0, 1, 2, 3, 4, 30, len(whole) - 1, len(whole) - 22, *range(0, len(whole), 97)}
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"{cut} is truncated, damaged or not"):
            load_checkpoint(cut)


def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """Dates and paddings of the archive do not matter; no weight or text may come back altered."""
    checkpoint = Checkpoint({"weight": torch.arange(50.0)}, {"config": "{}"}, {"loss": 1.0})
    save_checkpoint(tmp_path / "x.pt", checkpoint)
    whole = (tmp_path / "x.pt").read_bytes()
    outcome: Counter[str] = Counter()
    first = whole.index(checkpoint.model["weight"].numpy().tobytes())
    for place in {*range(0, len(whole), 13), *range(first, first + 200, 3)}:
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        (tmp_path / "x.pt").write_bytes(bytes(damaged))
        try:
            loaded = load_checkpoint(tmp_path / "x.pt")
        except CheckpointError:
            outcome["refused"] += 1
        else:
            assert torch.equal(loaded.model["weight"], checkpoint.model["weight"]), place
            assert loaded.scores == checkpoint.scores and loaded.texts == checkpoint.texts
            outcome["the same"] += 1
    assert outcome["refused"] > 100


@pytest.mark.parametrize(
    "content", [b"hello, world", b"\x80\x02K\x01.", b"PK\x03\x04", b"\x00" * 99]
)
def test_another_kind_of_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "x.pt")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_executed(archive: bool, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "executed")
    if archive:
        write(tmp_path / "x.pt", model={"weight": trap})
    else:
        (tmp_path / "x.pt").write_bytes(pickle.dumps(trap))
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))  # it does work
    assert trap.path.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not a checkpoint of this project"),
        ({"version": 99}, "is a checkpoint of version 99, this code reads 1"),
        ({"texts": "left out", "training": "left out"}, "lacks texts, training"),
        ({"version": torch.ones(3)}, "is a checkpoint of version Tensor"),
        ({"model": None}, "model must be an object, found None"),
        ({"model": [torch.ones(2)]}, "model must be an object, found a list of 1"),
        ({"model": {"w": 3.0}}, r"model\.w must be a Tensor, found 3\.0"),
        ({"model": {5: torch.ones(1)}}, "model must have text as keys, found 5"),
        ({"texts": {"config": {"a": 1}}}, r"texts\.config must be text, found an object"),
        ({"scores": {"loss": "low"}}, r"scores\.loss must be a number, found 'low'"),
        ({"model": {"w": torch.eye(3).to_sparse()}}, "the tensor w is a sparse_coo tensor"),
        ({"model": {"w": quantised()}}, "the tensor w is a quantised tensor, expected a dense"),
        ({"model": {"w": torch.ones(2, device="meta")}}, "the tensor w is a meta tensor"),
        ({"model": {"w": torch.ones(1).expand(9)}}, r"the tensor w is \[9\], more than the file"),
        ({"model": {"w": torch.tensor([1.0, float("nan")])}}, "the tensor w holds NaN or inf"),
        ({"model": {"w": torch.full((2,), float("-inf")).half()}}, "the tensor w holds NaN or"),
        ({"model": {"w": torch.ones(2, dtype=torch.complex64)}}, "the tensor w holds torch.compl"),
    ],
)
def test_another_format_version_or_content_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "x.pt", **changes)
    with pytest.raises(CheckpointError, match=f"x.pt:? {message}"):
        load_checkpoint(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of this project"):
        load_checkpoint(tmp_path / "list.pt")


def test_weights_that_do_not_fit_are_named_with_found_and_expected() -> None:
    model = nn.Linear(2, 3)
    good = {name: torch.zeros_like(x) for name, x in model.state_dict().items()}
    load_weights(model, good, source="x.pt")
    assert not model.weight.any()
    cases = {
        "weight is missing": {"bias": good["bias"]},
        "gate is not expected": {**good, "gate": torch.ones(1)},
        r"weight is \[5, 2\], expected \[3, 2\]": {**good, "weight": torch.ones(5, 2)},
    }
    for message, weights in cases.items():
        with pytest.raises(CheckpointError, match=rf"x.pt does not fit .*{message} \(1 of 2"):
            load_weights(model, weights, source="x.pt")
    assert not model.weight.any()


def test_a_full_disk_leaves_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make())
    old = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=f"cannot write {path}: No space left on device"):
        save_checkpoint(path, Checkpoint({}, {}))
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """A real limit of the system on the size of files, met in the middle of the weights."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, make())
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(DataError, match=f"cannot write {path}: File too large"):
            save_checkpoint(path, Checkpoint({"w": torch.ones(100_000)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
