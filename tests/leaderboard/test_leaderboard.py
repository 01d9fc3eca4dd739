"""Runs gathered from folders in any state, ranked by metric, shown on a page."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from script_runner import Scripts

from captioner.commands.leaderboard import leaderboard
from captioner.config import LeaderboardConfig
from captioner.leaderboard.gather import gather
from captioner.leaderboard.parallel import axes
from captioner.leaderboard.table import make_boards
from captioner.runs.outcome import Outcome


def make_run(folder: Path, scores: list[float], *, metric: str = "BLEU-4", **settings: Any) -> Path:
    """A run's small files; best.pt is no checkpoint, which must not matter."""
    folder.mkdir(parents=True)
    kind = (
        {"kind": "scenes"}
        if metric == "BLEU-4"
        else {"kind": "text", "source": "python", "unit": "byte"}
    )
    config = {
        "trainer": {"best_metric": metric, "epochs": 3},
        "data": kind,
        "optimizer": {"lr": 0.001, **settings},
        "generation": {"method": "greedy"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    history = [{"epoch": at, "seconds": 10.0, metric: s} for at, s in enumerate(scores, 1)]
    (folder / "history.json").write_text(json.dumps(history))
    (folder / "best.pt").write_bytes(b"not opened")
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    top = tmp_path / "outputs"
    make_run(top / "s" / "a", [1.0, 9.0, 7.0], lr=0.001)
    make_run(top / "s" / "b", [5.0, 8.0, 8.5], lr=0.01)
    make_run(top / "c", [4.0], lr=0.1)
    make_run(top / "words" / "x", [2.5, 2.1, 2.2], metric="loss")
    make_run(top / "words" / "y", [2.4, 2.0, 1.9], metric="loss")
    evaluated = top / "s" / "b" / "dev_greedy"
    evaluated.mkdir()
    scores = {
        "BLEU-4": 8.5,
        "intervals": {"BLEU-4": [7.5, 9.5]},
        "protocol": {
            "split": "dev",
            "generation": {"method": "greedy"},
            "checkpoint": "b/best.pt 0",
        },
    }
    (evaluated / "scores.json").write_text(json.dumps(scores))
    return top


def test_captioners_and_language_models_are_ranked_apart(outputs: Path) -> None:
    words, scenes = sorted(
        make_boards(gather([outputs]).runs), key=lambda b: b.metric, reverse=True
    )
    assert [run.folder.name for run in scenes.runs] == ["a", "b", "c"]
    assert [run.folder.name for run in words.runs] == ["y", "x"], "a lower loss is better"
    assert [run.score for run in scenes.runs] == [9.0, 8.5, 4.0]
    assert scenes.differing == ["optimizer.lr"]
    assert [run.state for run in scenes.runs] == ["finished", "finished", "stopped"]
    assert scenes.runs[1].interval is not None and scenes.runs[1].interval.low == 7.5
    assert axes(words)[-1].places[0] == 1.0, "the best is at the top"


def test_the_last_line_names_the_best_checkpoint(outputs: Path) -> None:
    said = leaderboard(LeaderboardConfig(folders=[str(outputs / "s")]))
    assert said.splitlines()[-1] == f"best BLEU-4 on scenes: 9, {outputs}/s/a/best.pt"
    assert "7.50 to 9.50 (dev_greedy)" in said and "none" in said


def test_folders_in_any_state_are_survived(outputs: Path) -> None:
    (outputs / "s" / "b" / "history.json").write_text('[{"epoch": 1, "BLE')
    (outputs / "foreign").mkdir()
    (outputs / "foreign" / "config.json").write_text('{"model": "bert"}')
    (outputs / "list").mkdir()
    (outputs / "list" / "config.json").write_text("[1]")
    (outputs / "noconfig").mkdir()
    (outputs / "noconfig" / "history.json").write_text("[]")
    (outputs / "unrelated").mkdir()
    config = json.loads((outputs / "c" / "config.json").read_text())
    refused = outputs / "refused"
    refused.mkdir()
    Outcome("failed", reason="lr must be <more>", config=config).save(refused)
    gathered = gather([outputs])
    assert len(gathered.runs) == 5 and len(gathered.notes) == 4
    for name in ("s/b", "foreign", "list", "noconfig"):
        assert any(f"{outputs}/{name} is left out" in note for note in gathered.notes), name
    said = leaderboard(LeaderboardConfig(folders=[str(outputs)], out=str(outputs / "r.json")))
    assert f"failed: {refused}: lr must be <more>" in said
    page = (outputs / "leaderboard.html").read_text()
    assert "lr must be &lt;more&gt;" in page and "<more>" not in page
    assert len(json.loads((outputs / "r.json").read_text())["runs"]) == 5


def test_a_run_in_another_process_is_running(
    outputs: Path, tmp_path: Path, scripts: Scripts
) -> None:
    folder, program = outputs / "c", tmp_path / "hold.py"
    program.write_text(
        "import sys, time; from pathlib import Path\n"
        "from captioner.runs.outcome import sole_trainer\n"
        "with sole_trainer(Path(sys.argv[1])): print('held'); time.sleep(240)"
    )
    process = scripts.start(tmp_path, program, [str(folder)])
    process.wait_until(lambda: process.stdout == "held\n")
    states = {run.folder.name: run.state for run in gather([outputs]).runs}
    process.kill()
    assert states["c"] == "running" and states["a"] == "finished"
    assert {run.folder.name: run.state for run in gather([outputs]).runs}["c"] == "stopped"


def test_page_and_csv_hold_every_run(outputs: Path, tmp_path: Path) -> None:
    page, out = tmp_path / "p.html", tmp_path / "r.csv"
    leaderboard(LeaderboardConfig(folders=[str(outputs)], page=str(page), out=str(out)))
    text = page.read_text()
    assert text.count("<tr data-run=") == 5 and text.count("<polyline") == 5
    assert not re.search(r'(src|href)="|https?://(?!www\.w3)', text), "the page stands alone"
    with out.open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["score"] for row in rows if row["metric"] == "loss"] == ["1.9", "2.1"]
    assert {row["optimizer.lr"] for row in rows if row["metric"] == "BLEU-4"} == {
        "0.001",
        "0.01",
        "0.1",
    }


def test_nothing_there_is_said(tmp_path: Path) -> None:
    assert leaderboard(LeaderboardConfig(folders=[str(tmp_path)])) == f"no runs in {tmp_path}"


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("config.json", {"trainer": {"best_metric": "BLEU-4", "epochs": "3"}}, "trainer: epochs"),
        ("config.json", {"trainer": None}, "trainer must be an object"),
        ("history.json", [{"epoch": 1, "BLEU-4": "high"}], r"[0].BLEU-4 must be a finite number"),
        ("history.json", [{"BLEU-4": 1.0}], "[0] has no number epoch"),
        ("history.json", [{"epoch": None, "BLEU-4": 1.0}], "[0] has no number epoch"),
        ("outcome.json", {"state": "finished"}, "a finished run has a metric"),
        ("outcome.json", {"state": "failed", "best": "9"}, "best must be a finite number or null"),
        ("outcome.json", {"state": "lost"}, "state must be one of finished, failed, found 'lost'"),
        ("outcome.json", [], "must be an object with the keys state, found a list of 0"),
    ],
)
def test_runs_of_another_shape_are_left_out(
    outputs: Path, file: str, content: Any, note: str
) -> None:
    (outputs / "c" / file).write_text(json.dumps(content))
    gathered = gather([outputs])
    assert len(gathered.runs) == 4 and len(gathered.notes) == 1
    assert gathered.notes[0].startswith(f"{outputs}/c is left out: ") and note in gathered.notes[0]


def test_scores_of_another_shape_give_no_interval(outputs: Path) -> None:
    path = outputs / "s" / "b" / "dev_greedy" / "scores.json"
    scores = json.loads(path.read_text())
    for part in ({"protocol": "dev"}, {"intervals": {"BLEU-4": ["low", 1]}}, {"intervals": 10**30}):
        path.write_text(json.dumps({**scores, **part}))
        assert all(run.interval is None for run in gather([outputs]).runs), part
