"""Sweeps that are killed and resumed, runs that fail, and stored studies: real processes."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra.core.override_parser.types import Override
from script_runner import Process, Scripts

from captioner.errors import ConfigError
from captioner.sweeps.grid import split_overrides
from captioner.sweeps.study import Study

TINY = (
    "experiment=words",
    "data.path=text.txt",
    "data.unit=character",
    "vocabulary.min_count=1",
    "model.embedding_dim=8",
    "model.hidden_size=8",
    "model.num_layers=1",
    "model.tie_embeddings=false",
    "trainer.epochs=2",
    "trainer.batch_size=4",
    "trainer.window=8",
    "trainer.epoch_windows=40",
    "trainer.checkpoint_steps=5",
    "trainer.progress=false",
    "data.cache_dir=cache",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place to run in, with a text to learn."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog ran off\n" * 400)
    return tmp_path


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def start(scripts: Scripts) -> Start:
    """Begin a sweep in a folder."""

    def begin(folder: Path, *overrides: str) -> Process:
        arguments = ["-m", *TINY, "sweep_dir=sweep", *overrides]
        return scripts.start(folder, "train", arguments, together=True)

    return begin


def finish(process: Process) -> str:
    process.wait(timeout=240)
    return process.stdout


def kill_when(process: Process, ready: Callable[[], bool]) -> None:
    """SIGKILL for the whole process group as soon as something has happened."""
    process.wait_until(ready)
    assert process.poll() is None, f"over before it was killed: {process.stdout[-2000:]}"
    process.kill()


def outcomes(folder: Path) -> dict[str, int]:
    """The finished runs, and when each was."""
    found = (folder / "sweep").glob("*/outcome.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def under_way(folder: Path) -> bool:
    """Whether one run is finished and another has saved a checkpoint."""
    saved = {path.parent.name for path in (folder / "sweep").glob("*/last.pt")}
    ended = set(outcomes(folder))
    return bool(saved & ended) and bool(saved - ended)


def histories(folder: Path) -> dict[str, list[dict[str, float]]]:
    return {
        path.parent.name: [
            {key: value for key, value in one.items() if key != "seconds"}
            for one in json.loads(path.read_text())
        ]
        for path in (folder / "sweep").glob("*/history.json")
    }


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_repeats_nothing(folder: Path, start: Start) -> None:
    """One of its values is bad: that run fails alone, in one line, and is in the table."""
    grid = ("optimizer.lr=3e-3,-1", "model.hidden_size=8,16")
    process = start(folder, *grid)
    kill_when(process, lambda: under_way(folder))
    before = outcomes(folder)
    interrupted = {path.parent.name for path in (folder / "sweep").glob("*/last.pt")} - set(before)
    again = start(folder, *grid)
    said = finish(again)
    assert again.returncode == 1, said
    names = {f"hidden_size={size},lr={lr}" for size in (8, 16) for lr in (0.003, -1)}
    after = outcomes(folder)
    assert set(after) == names
    done = [name for name in before if "-1" not in name]
    assert done and all(after[name] == before[name] for name in done), "a finished run was touched"
    for name in interrupted:
        assert "resuming at step" in (folder / "sweep" / name / "train.log").read_text()
    assert "2 of 4 runs failed" in said and "optimizer.lr must be greater than 0" in said
    assert "Traceback" not in said
    best = [line for line in said.splitlines() if line.startswith("best perplexity on")]
    assert best and best[-1].endswith("best.pt")

    # The same runs alone have the same curves.
    whole = folder / "whole"
    whole.mkdir()
    (whole / "text.txt").write_text((folder / "text.txt").read_text())
    os.utime(whole / "text.txt")
    alone = start(whole, "optimizer.lr=3e-3", "model.hidden_size=16")
    finish(alone)
    assert alone.returncode == 0
    assert histories(whole)["run"] == histories(folder)["hidden_size=16,lr=0.003"]


@pytest.mark.slow
def test_a_killed_study_counts_every_trial_once(folder: Path, start: Start) -> None:
    pytest.importorskip("optuna", minversion="4", reason="the extra [sweeps] is not installed")
    study = (
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "optimizer.lr=tag(log, interval(1e-3, 1e-1))",
        "model.hidden_size=8,16",
    )
    process = start(folder, *study)
    kill_when(process, lambda: under_way(folder))
    before = outcomes(folder)
    assert "RUNNING" in [state for _, state, _ in trials(folder)]
    again = start(folder, *study)
    said = finish(again)
    assert again.returncode == 0, said
    after = outcomes(folder)
    assert all(after[name] == before[name] for name in before), "a finished run was touched"
    assert [(number, state) for number, state, _ in trials(folder)] == [
        (number, "COMPLETE") for number in range(3)
    ]
    scores = {
        json.loads(path.read_text())["best"] for path in (folder / "sweep").glob("*/outcome.json")
    }
    assert {value for _, _, value in trials(folder)} == scores
    assert len(after) == 3

    # Told to go to four, it adds one and leaves the others.
    more = start(folder, *study, "hydra.sweeper.n_trials=4")
    finish(more)
    assert more.returncode == 0 and len(trials(folder)) == 4
    assert all(outcomes(folder)[name] == after[name] for name in after)


def trials(folder: Path) -> list[tuple[int, str, float | None]]:
    """Number, state and value of every trial in the study's file."""
    with sqlite3.connect(folder / "sweep" / "study.db") as base:
        rows = base.execute(
            "select number, state, value from trials left join trial_values using (trial_id)"
            " order by number"
        )
        return list(rows)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_runs_side_by_side_share_one_token_store(folder: Path, launcher: str, start: Start) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    jobs = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    short = ["trainer.epochs=1", "trainer.epoch_windows=5"]
    process = start(folder, f"hydra/launcher={launcher}", *jobs, *short, "model.hidden_size=8,16")
    said = finish(process)
    assert process.returncode == 0, said
    assert set(outcomes(folder)) == {"hidden_size=8", "hidden_size=16"}
    assert len(list((folder / "cache").glob("*/text.json"))) == 1


def stored_study(folder: Path, space: Sequence[Override]) -> Study:
    """A study of two trials in study.db."""
    return Study(
        space,
        storage=f"sqlite:///{folder}/study.db",
        name="first",
        n_trials=2,
        lower_is_better=True,
        sampler="random",
        seed=0,
        lock=folder / "lock",
    )


@pytest.mark.parametrize("put", [Path.mkdir, lambda path: path.write_bytes(b"no database" * 99)])
def test_a_study_that_cannot_be_read_is_refused(
    put: Callable[[Path], object], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    put(tmp_path / "study.db")
    with pytest.raises(ConfigError, match=r"cannot work with the study first in sqlite.*study\.db"):
        stored_study(tmp_path, [])


def test_a_study_of_version_0_1_goes_on_with_its_trials(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/study.db"
    before = optuna.create_study(storage=storage, study_name="first")
    drawn = before.ask().suggest_float("decoder.init_scale", 0.01, 0.5, log=True)  # killed here
    _, space = split_overrides(None, ["model.init_scale=tag(log,interval(0.01,0.5))"])
    study = stored_study(tmp_path, space)
    (_, first), (_, second) = study.next_trials(2)
    assert first == [f"model.init_scale={drawn}"]
    assert second[0].startswith("model.init_scale=")
    assert {name for one in before.get_trials() for name in one.params} == {"decoder.init_scale"}
