"""A training run keeps how it ended: finished is not repeated, failed says why."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from composed import compose_config

from captioner.commands.train import train
from captioner.errors import DataError, NumericsError
from captioner.runs.folder import FolderTaken
from captioner.runs.outcome import read_outcome

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [
    "experiment=words",
    "data.unit=character",
    "vocabulary.min_count=1",
    "model.embedding_dim=8",
    "model.hidden_size=8",
    "model.num_layers=1",
    "trainer.epochs=2",
    "trainer.batch_size=4",
    "trainer.window=8",
    "trainer.epoch_windows=10",
    "trainer.progress=false",
    "trainer.shown_pictures=1",
]


def overrides(folder: Path) -> list[str]:
    (folder / "text.txt").write_text("the cat sat on the mat\n" * 40)
    return [*TINY, f"data.path={folder}/text.txt", f"data.cache_dir={folder}/cache"]


def compose(folder: Path, *more: str) -> object:
    settings = [*overrides(folder), f"run_dir={folder}/run", *more]
    return compose_config("train", settings, configs=CONFIGS)


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)  # nor does the system know the user
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    first = train(compose(tmp_path))  # type: ignore[arg-type]
    assert first.finished and first.metric == "perplexity" and first.best is not None
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert first.best == min(one["perplexity"] for one in history)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert train(compose(tmp_path, "resume=true")) == first  # type: ignore[arg-type]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    for more in ([], ["resume=true", "seed=1"]):
        with pytest.raises(FolderTaken):
            train(compose(tmp_path, *more))  # type: ignore[arg-type]
    assert read_outcome(tmp_path / "run") == first


def test_a_failed_run_says_why_and_may_be_taken_up(tmp_path: Path) -> None:
    wild = ["optimizer=sgd", "optimizer.lr=1e30", "optimizer.clip_norm=null"]
    with pytest.raises(NumericsError):
        train(compose(tmp_path, *wild))  # type: ignore[arg-type]
    outcome = read_outcome(tmp_path / "run")
    assert outcome is not None and outcome.state == "failed"
    assert "finite" in str(outcome.reason) or "loss became" in str(outcome.reason)
    assert "\n" not in str(outcome.reason)
    with pytest.raises(NumericsError):
        train(compose(tmp_path, *wild, "resume=true"))  # type: ignore[arg-type]


def test_a_full_disk_does_not_hide_why_a_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise DataError("cannot write outcome.json: No space left on device")

    def failing(*_: object) -> None:
        raise NumericsError("the loss became nan")

    config = compose(tmp_path)
    monkeypatch.setattr("captioner.runs.outcome.write_json", full)
    monkeypatch.setattr("captioner.commands.train.build_trainer", failing)
    with pytest.raises(NumericsError, match="the loss became nan"):
        train(config)  # type: ignore[arg-type]
    assert "No space left on device" in caplog.text


def test_a_single_runs_folder_is_named_by_what_differs(tmp_path: Path, run_script) -> None:  # type: ignore[no-untyped-def]
    overrides(tmp_path)  # the text
    given = ["experiment=words", f"data.path={tmp_path}/text.txt", "data.unit=character"]
    small = ["trainer.batch_size=4", "trainer.window=8", "trainer.epochs=1", "optimizer.lr=2e-3"]
    done = run_script(tmp_path, "train", *given, *small)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs").glob("*/*")
    date, _, differs = run.name.partition("_unit=")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", date)
    assert differs == "character,lr=0.002,batch_size=4,epochs=1,window=8"
    assert {"config.json", "train.log", "best.pt", "outcome.json"} <= {
        p.name for p in run.iterdir()
    }
