"""Successive halving: who goes on, by the histories of a sweep's runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioner.errors import DataError
from captioner.runs.halving import SuccessiveHalving


def halving(folder: Path, **changes: object) -> SuccessiveHalving:
    settings = {"metric": "loss", "lower_is_better": True, "first": 2, "factor": 3}
    return SuccessiveHalving(folder, **{**settings, **changes})  # type: ignore[arg-type]


def write(folder: Path, *losses: float) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "history.json").write_text(json.dumps([{"loss": loss} for loss in losses]))
    return folder


def test_rungs(tmp_path: Path) -> None:
    assert [k for k in range(30) if halving(tmp_path).is_rung(k)] == [2, 6, 18]
    assert [k for k in range(9) if halving(tmp_path, first=1, factor=2).is_rung(k)] == [1, 2, 4, 8]


def test_the_best_third_goes_on_by_the_best_epoch_so_far(tmp_path: Path) -> None:
    losses = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (9.0, 1.5, 0.1), "d": (4.0, 4.0), "e": (1.1,)}
    runs = {name: write(tmp_path / name, *values) for name, values in losses.items()}
    write(tmp_path / "f", 5.0, 0.5, 7.0, 8.0)
    (tmp_path / "empty").mkdir()
    # Of five that have come so far one goes on: f, whose second epoch was the best of all.
    assert [name for name in "abcd" if halving(runs[name]).goes_on(2)] == []
    assert halving(tmp_path / "f").goes_on(2)
    write(tmp_path / "g", 8.0, 8.0)
    assert [name for name in "abcd" if halving(runs[name]).goes_on(2)] == ["a"]
    assert halving(tmp_path / "f", lower_is_better=False, factor=2).goes_on(2)


def test_the_first_goes_on_and_a_damaged_history_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "first", 3.0, 2.0)
    assert halving(first).goes_on(2)
    (write(tmp_path / "other", 1.0) / "history.json").write_text("[{")
    with pytest.raises(DataError, match=r"other/history\.json"):
        halving(first).goes_on(2)
