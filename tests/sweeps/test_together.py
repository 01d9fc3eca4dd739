"""hydra/launcher=replicas: runs that train together end with folders as if each had been alone."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sqlite3
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import in_process
import pytest
import torch
from composed import compose_config
from script_runner import REPOSITORY

from captioner.build.replicas import group_runs
from captioner.commands import train_together as together
from captioner.commands.train import train
from captioner.errors import CaptionerError
from captioner.files import write_json
from captioner.leaderboard.gather import gather
from captioner.leaderboard.table import as_records, make_boards
from captioner.runs.folder import FolderTaken, flat
from captioner.runs.outcome import read_outcome, sole_trainer
from captioner.training.checkpoint import load_checkpoint
from captioner.training.trainer import Trainer

TINY = (
    "experiment=words",
    "data.path=text.txt",
    "data.unit=character",
    "data.cache_dir=cache",
    "vocabulary.min_count=1",
    "model.embedding_dim=8",
    "model.hidden_size=8",
    "model.num_layers=1",
    "model.tie_embeddings=false",
    "trainer.epochs=2",
    "trainer.batch_size=4",
    "trainer.window=8",
    "trainer.epoch_windows=9",
    "trainer.log_steps=3",
    "trainer.progress=false",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a text to learn."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog ran off\n" * 40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compose(name: str, *overrides: str) -> Any:
    return compose_config("train", [*TINY, f"run_dir={name}", "resume=true", *overrides])


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(folder) / "last.pt").model


def history(folder: str) -> list[dict[str, float]]:
    epochs = json.loads((Path(folder) / "history.json").read_text())
    return [{key: value for key, value in one.items() if key != "seconds"} for one in epochs]


def written(folder: str) -> dict[str, Any]:
    config = flat(json.loads((Path(folder) / "config.json").read_text()))
    return {key: value for key, value in config.items() if key not in ("run_dir", "sweep_dir")}


SETTINGS = [
    ("optimizer.lr=1e-2", "seed=1"),
    ("optimizer.lr=3e-3", "seed=1"),
    ("optimizer.lr=1e30", "seed=1"),
    ("optimizer.lr=1e-2", "seed=2", "model.output_dropout=0.5"),
    ("optimizer.lr=3e-3", "seed=2", "optimizer.clip_norm=0.1"),
]


def test_runs_together_end_with_the_bits_and_folders_of_runs_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One diverges and leaves the others as they are; each seed has its order of the batches."""
    configs = [compose(f"group/{k}", *own) for k, own in enumerate(SETTINGS)]
    assert group_runs(configs, 8) == [([0, 1, 2, 3, 4], "")]
    failed = together.train_together(configs)
    assert [k for k, error in enumerate(failed) if error is not None] == [2]
    diverged = read_outcome(Path("group/2"))
    assert diverged is not None and "the loss became" in str(diverged.reason)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for k, own in enumerate(SETTINGS):
            if k == 2:
                continue
            alone, group = f"alone/{k}", f"group/{k}"
            outcome = train(compose(alone, *own))
            for name, value in weights(alone).items():
                assert torch.equal(weights(group)[name], value), name
            assert history(group) == history(alone) and len(history(alone)) == 2
            assert written(group) == written(alone)
            others = [str(other) for other in range(len(SETTINGS)) if other != k]
            expected = dataclasses.replace(outcome, together=others)
            assert read_outcome(Path(group)) == expected
            names = {path.name for path in Path(alone).iterdir()}
            assert names == {path.name for path in Path(group).iterdir()}
    finally:
        torch.set_num_threads(threads)


def test_of_runs_together_only_the_best_go_on_and_a_kill_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four runs of four epochs, halved after one and after two."""
    rates = ("1e-2", "1e-4", "3e-3", "1e-5")
    common = ("trainer.epochs=4", "trainer.halving_epoch=1", "trainer.halving_factor=2")

    def runs(folder: str) -> list[Any]:
        own = (*common, f"sweep_dir={folder}")
        return [compose(f"{folder}/{lr}", *own, f"optimizer.lr={lr}") for lr in rates]

    assert together.train_together(runs("whole")) == [None] * 4
    epochs = {lr: len(history(f"whole/{lr}")) for lr in rates}
    assert epochs == {"1e-2": 4, "1e-4": 1, "3e-3": 2, "1e-5": 1}
    # Each as far as it trained, and halved again by what is there: nothing is trained twice.
    before = Path("whole/3e-3/last.pt").read_bytes()
    outcome = train(runs("whole")[2])
    assert outcome.finished and Path("whole/3e-3/last.pt").read_bytes() == before

    def stop(trainer: Trainer) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "goes_on", stop)  # before any is compared with the others
        with pytest.raises(KeyboardInterrupt):
            together.train_together(runs("cut"))
    assert together.train_together(runs("cut")) == [None] * 4
    assert {lr: history(f"cut/{lr}") for lr in rates} == {
        lr: history(f"whole/{lr}") for lr in rates
    }


def test_a_damaged_checkpoint_and_a_folder_in_use_leave_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held_by_another_process(place: Path) -> Any:
        if place.name == "1":
            raise FolderTaken(f"another process is training in {place}")
        return sole_trainer(place)

    monkeypatch.setattr(together, "sole_trainer", held_by_another_process)
    configs = [compose(f"group/{k}", f"optimizer.lr={k + 1}e-3") for k in range(3)]
    damaged = folder / "group" / "0"
    write_json(damaged / "config.json", dataclasses.asdict(configs[0]))
    (damaged / "last.pt").write_bytes(b"damaged")
    failed = together.train_together(configs)
    assert isinstance(failed[0], CaptionerError) and "last.pt" in str(failed[0])
    assert isinstance(failed[1], FolderTaken) and failed[2] is None
    ended = [read_outcome(folder / "group" / str(k)) for k in range(3)]
    assert [one and one.state for one in ended] == ["failed", None, "finished"]


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        (["model.hidden_size=16"], "such as model.hidden_size"),
        ([], "no other was asked for at the same time"),
        (["optimizer.lr=1", "optimizer.lr=2"], "more than 2 at a time"),
    ],
)
def test_why_one_trains_alone_is_said(
    others: list[str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    configs = [compose("first"), *(compose(f"other_{k}", one) for k, one in enumerate(others))]
    groups = together.divide(configs, 2)
    assert groups[0] == [0] and sorted(chain(*groups)) == [*range(len(configs))]
    assert max(map(len, groups)) == (2 if len(others) == 2 else 1)
    assert re.search(f"first trains alone: .*{reason}", caplog.text)


def test_what_cannot_be_replicas_trains_alone() -> None:
    """As trainer.replicas=K refuses it, in the same words."""
    configs = [compose(f"{k}", f"optimizer.lr={k + 1}", "trainer.replicas=2") for k in range(2)]
    (first, why), (second, _) = group_runs(configs, 8)
    assert (first, second) == ([0], [1]) and "trainer.replicas=2 are a group already" in why
    random = ("data=scenes", "encoder=plain", "encoder.weights=random", "encoder.train_from=null")
    frozen = [
        compose_config("train", [f"run_dir={k}", f"seed={k}", "trainer.order_seed=0", *random])
        for k in range(2)
    ]
    assert "replicas share the features of a frozen encoder" in group_runs(frozen, 8)[0][1]


Sweep = Callable[..., int]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run a sweep in this process; its exit status."""

    def run(*overrides: str) -> int:
        path = REPOSITORY / "scripts" / "train.py"
        given = ["-m", "hydra/launcher=replicas", *TINY, "trainer.epochs=1", "sweep_dir=sweep"]
        return in_process.call(path, *given, *overrides, monkeypatch=monkeypatch)

    return run


def test_a_sweep_stopped_between_its_groups_repeats_nothing(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train_group, groups = together.train_together, []

    def stopping(configs: Any) -> Any:
        groups.append([Path(config.run_dir).name for config in configs])
        if len(groups) == 2:
            raise KeyboardInterrupt
        return train_group(configs)

    monkeypatch.setattr(together, "train_together", stopping)
    grid = ("model.hidden_size=8,16", "optimizer.lr=1e-2,1e30")
    assert sweep(*grid) == 130
    names = [[f"hidden_size={size},lr={lr}" for lr in (0.01, 1e30)] for size in (8, 16)]
    assert groups == names
    ended = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/outcome.json")}
    assert len(ended) == 2
    assert sweep(*grid) == 1
    assert groups[2:] == [names[1]]
    for path, time in ended.items():
        assert (path.stat().st_mtime_ns == time) == ("1e+30" not in str(path))
    said = "".join(capfd.readouterr())
    assert "2 train together, as replicas: hidden_size=16,lr=0.01; " in said
    assert "lr=1e+30 trains alone: every other differs" in said
    assert "2 of 4 runs failed" in said and "Traceback" not in said
    assert "finished, 2 together" in said
    records = as_records(make_boards(gather(["sweep"]).runs))
    assert {one["folder"]: one["together"] for one in records if one["score"]} == {
        f"sweep/{trained}": diverged for trained, diverged in names
    }
    log = (Path("sweep") / names[1][1] / "train.log").read_text()
    assert f"{names[1][0]}: epoch 1/1" in log and f"{names[1][1]} is left out" in log


def test_a_study_asks_for_as_many_trials_as_train_together(
    sweep: Sweep, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", minversion="4", reason="the extra [sweeps] is not installed")
    study = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")
    assert sweep(*study, "optimizer.lr=tag(log, interval(1e-3, 1e-1))") == 0
    assert capfd.readouterr().err.count("2 train together, as replicas") == 1
    with sqlite3.connect("sweep/study.db") as base:
        values = [value for (value,) in base.execute("select value from trial_values")]
    outcomes = [read_outcome(path.parent) for path in Path("sweep").glob("*/outcome.json")]
    assert sorted(values) == sorted(one.best for one in outcomes if one and one.best)
    assert len(values) == 2


def test_a_number_that_cannot_be_is_refused_before_anything_runs(
    sweep: Sweep, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep("hydra.launcher.most=0", "optimizer.lr=1,2") == 2
    assert "hydra.launcher.most must be from 1 to 1000, got 0" in capfd.readouterr().err
    assert not Path("sweep").exists()
