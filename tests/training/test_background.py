"""Checkpoints written in the background: copies, in order, whole, and no failure unsaid."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.errors import DataError
from captioner.training import background
from captioner.training.background import CheckpointWriter
from captioner.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, snapshot


def numbered(number: float) -> Checkpoint:
    return Checkpoint({"w": torch.tensor([number])}, {})


def test_a_copy_is_the_same_and_stays_so() -> None:
    tied, flat = torch.arange(6.0).view(2, 3), torch.arange(8.0)
    training: Any = {
        "state": {0: {"step": torch.tensor(3)}, 1: {}},
        "halves": [flat[:4], flat[4:].view(2, 2).t()],
        "progress": {"history": [{"loss": 1.0}], "best": None},
    }
    filters = torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last)
    model = {"a": tied, "b": tied, "filters": filters, "none": torch.empty(0, 3)}
    kept = Checkpoint(model, {"config": "{}"}, {"BLEU-4": 1.0}, training)
    copy = snapshot(kept)
    # An optimiser's state has to lie as the weights do.
    assert copy.model["filters"].stride() == filters.stride()
    assert torch.equal(copy.model["filters"], filters) and copy.model["none"].shape == (0, 3)
    tied.zero_()
    flat.zero_()
    training["progress"]["history"][0]["loss"] = 2.0
    assert copy.model["a"] is copy.model["b"]
    assert copy.model["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copy.training["halves"][1].tolist() == [[4, 6], [5, 7]]
    assert copy.training["progress"] == {"history": [{"loss": 1.0}], "best": None}
    assert copy.training["state"] == {0: {"step": torch.tensor(3)}, 1: {}}
    assert (copy.texts, copy.scores) == (kept.texts, kept.scores)


def test_the_last_one_stands_and_all_came_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, written = threading.Event(), []

    def slowly(path: Path, checkpoint: Checkpoint) -> None:
        go.wait()
        written.append((threading.current_thread() is threading.main_thread(), path.name))
        save_checkpoint(path, checkpoint)

    monkeypatch.setattr(background, "save_checkpoint", slowly)
    writer, weights = CheckpointWriter(), torch.ones(1)
    with writer:
        writer.write(tmp_path / "last.pt", Checkpoint({"w": weights}, {}))
        weights.fill_(2.0)
        assert not written  # it does not wait for the disk
        go.set()
        for number in range(3):
            writer.write(tmp_path / "best.pt", numbered(number))
        writer.remove(tmp_path / "best.pt")
        writer.write(tmp_path / "last.pt", Checkpoint({"w": weights}, {}))
        writer.remove(tmp_path / "missing.pt")
    assert written == [(False, name) for name in ("last.pt", *["best.pt"] * 3, "last.pt")]
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(tmp_path / "last.pt").model["w"].tolist() == [2.0]


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, ValueError])
def test_what_a_write_raised_is_told_once_and_nothing_is_written_after_it(
    tmp_path: Path, end: type[BaseException] | None
) -> None:
    """But another error that ended the block goes first."""
    (tmp_path / "file").write_text("")
    raised: Any = ValueError if end is ValueError else DataError
    writer = CheckpointWriter()
    with pytest.raises(raised, match="first" if end is ValueError else "cannot write"), writer:
        writer.write(tmp_path / "file" / "best.pt", numbered(1))
        if end is ValueError:  # before the next write can tell of the first
            raise end("first")
        writer.write(tmp_path / "last.pt", numbered(1))
        if end is not None:
            raise end("first")
    assert not (tmp_path / "last.pt").exists()
    if end is ValueError:
        return
    writer.check()
    with writer:
        writer.write(tmp_path / "last.pt", numbered(1))
    assert (tmp_path / "last.pt").exists()
