"""The commands as a user types them: train, stop, resume, evaluate, caption; killed at any time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from script_runner import Scripts

from captioner.training.checkpoint import load_checkpoint

Run = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.slow
SMALL = [
    "data.train=48",
    "data.dev=12",
    "data.test=12",
    "data.size=32",
    "vocabulary.min_count=1",
    "encoder=torchvision",
    "encoder.name=squeezenet1_1",
    "encoder.weights=random",
    "encoder.size=32",
    "encoder.resize=squash",
    "encoder.batch_size=4",
    "encoder.workers=1",
    "model.embedding_dim=32",
    "model.hidden_size=32",
    "model.input_dropout=0.2",
    "model.output_dropout=0.2",
    "generation.length_penalty=0.5",
    "trainer.batch_size=12",
    "trainer.checkpoint_steps=2",
    "trainer.shown_pictures=1",
    "trainer.progress=false",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, run_script: Run) -> Path:
    """A folder in which a small run has been trained to the end with one command."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_script(folder, "train", *SMALL, "run_dir=run", "trainer.epochs=3")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_keeps_everything_in_its_folder(trained: Path) -> None:
    run = trained / "run"
    kept = {path.name for path in run.iterdir()}
    assert kept >= {"config.json", "train.log", "tensorboard", "vocabulary.json", "history.json"}
    assert kept >= {"last.pt", "best.pt"}
    assert not [name for name in kept if name.startswith(".")], "temporary files are left behind"
    assert list((run / "tensorboard").glob("events.*"))
    history = json.loads((run / "history.json").read_text())
    assert [figures["epoch"] for figures in history] == [1, 2, 3]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert json.loads((run / "config.json").read_text())["trainer"]["epochs"] == 3
    assert (run / "train.log").read_text().count("LSTM backend") == 1


def test_a_checkpoint_is_evaluated_from_the_command_line(run_script: Run, trained: Path) -> None:
    """As it was validated but for the beam, on data that lie elsewhere."""
    changes = ["generation.beam_size=2", "data.root=moved", "metrics=[BLEU]"]
    done = run_script(trained, "evaluate", "checkpoint=run/best.pt", "split=test", *changes)
    assert done.returncode == 0, done.stderr
    assert (trained / "moved").is_dir()
    assert "left out the captions of the nearest training images" in done.stderr
    assert "BLEU-4" in done.stdout and "attribute_accuracy" in done.stdout
    folder = trained / "run" / "test_beam2"
    scores = json.loads((folder / "scores.json").read_text())
    captions = json.loads((folder / "captions.json").read_text())
    assert len(captions) == 12 and set(captions[0]) == {"image_id", "caption"}
    assert scores["protocol"]["split"] == "test" and scores["protocol"]["images"] == 12
    generation = scores["protocol"]["generation"]
    assert (generation["beam_size"], generation["length_penalty"]) == (2, 0.5)
    assert "data:image/jpeg;base64" in (folder / "report.html").read_text()


def test_photos_are_captioned_from_the_command_line(run_script: Run, trained: Path) -> None:
    photos = trained / "photos"
    photos.mkdir(exist_ok=True)
    Image.effect_noise((50, 40), 60).convert("CMYK").save(photos / "cmyk.jpg")
    Image.new("RGBA", (30, 80), (200, 10, 10, 90)).save(photos / "clear.png")
    done = run_script(
        trained,
        "caption",
        "checkpoint=run/best.pt",
        "images=photos/",
        "generation.n_best=2",
        "out=c.json",
    )
    assert done.returncode == 0, done.stderr
    assert "photos/clear.png" in done.stdout and "photos/cmyk.jpg" in done.stdout
    written = json.loads((trained / "c.json").read_text())
    assert [Path(entry["image"]).name for entry in written] == ["clear.png", "cmyk.jpg"]
    first, second = written[0]["captions"]
    assert first["log_prob"] >= second["log_prob"]
    assert all(0 <= chance <= 1 for _, chance in first["words"])


def test_anybodys_results_file_is_scored(run_script: Run, tmp_path: Path) -> None:
    annotations = [{"id": i, "image_id": i // 2, "caption": "A dog runs fast ."} for i in range(4)]
    references = {"images": [{"id": 0}, {"id": 1}], "annotations": annotations}
    (tmp_path / "refs.json").write_text(json.dumps(references))
    results = [{"image_id": i, "caption": "a dog runs fast"} for i in range(2)]
    (tmp_path / "hyp.json").write_text(json.dumps(results))
    done = run_script(
        tmp_path, "evaluate", "results=hyp.json", "references=refs.json", "out=scores.json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "scores.json").read_text())["BLEU-4"] == pytest.approx(100)


def test_a_folder_that_holds_a_run_is_not_touched(run_script: Run, trained: Path) -> None:
    before = (trained / "run" / "last.pt").read_bytes()
    done = run_script(trained, "train", *SMALL, "run_dir=run", "trainer.epochs=3")
    assert done.returncode == 2
    assert "already holds a run" in done.stderr and "resume=true" in done.stderr
    done = run_script(
        trained, "train", *SMALL, "run_dir=run", "trainer.epochs=4", "seed=1", "resume=true"
    )
    assert done.returncode == 2
    assert "seed was 0, now 1" in done.stderr and "trainer.epochs was 3, now 4" in done.stderr
    assert "Traceback" not in done.stderr
    assert (trained / "run" / "last.pt").read_bytes() == before


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, scripts: Scripts) -> None:
    endless = ("run_dir=run", "trainer.epochs=200", "trainer.checkpoint_steps=null")
    process = scripts.start(tmp_path, "train", [*SMALL, *endless])
    process.wait_until(lambda: "epoch   1/200 " in log_of(tmp_path / "run"))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    said = process.stderr
    assert "run_dir=run resume=true" in said and "Traceback" not in said
    progress = (load_checkpoint(tmp_path / "run" / "last.pt").training or {})["progress"]
    assert progress["step"] >= 20


def test_killed_four_times_a_run_ends_bit_identical(tmp_path: Path, scripts: Scripts) -> None:
    """SIGKILL in the feature cache, between steps and while a checkpoint is written; more kills, of
    smaller runs: tests/training/test_trainer.py."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    moments = random.Random(0)
    folder = tmp_path / "killed"
    run = folder / "run"
    command = [*SMALL, "run_dir=run", "trainer.epochs=6", "resume=true"]
    whole = scripts.start(tmp_path / "whole", "train", command[:-1])
    command.append("trainer.scoring=beside")  # which decides nothing
    for phase in ("features", "steps", "saving", "anywhere"):
        left = {*run.glob(".last.pt.*")}  # by one that was killed while it saved
        process = scripts.start(folder, "train", command)
        if phase == "features":
            process.wait_until(lambda: any(folder.rglob("done.npy")))
        elif phase == "steps":
            begun = trainings(run)
            process.wait_until(lambda begun=begun: trainings(run) > begun)  # type: ignore[misc]
        elif phase == "saving":
            process.wait_until(lambda left=left: bool({*run.glob(".last.pt.*")} - left))  # type: ignore[misc]
        if phase != "saving":
            time.sleep(moments.uniform(0, 0.6))
        assert process.poll() is None, f"over before it was killed ({phase}): {log_of(run)[-300:]}"
        process.kill()
    last = scripts.start(folder, "train", command)
    assert last.wait(timeout=240) == 0, last.stderr
    assert whole.wait(timeout=240) == 0, whole.stderr
    for name in ("last.pt", "best.pt"):
        expected = load_checkpoint(tmp_path / "whole" / "run" / name).model
        found = load_checkpoint(run / name).model
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    assert without_seconds(run) == without_seconds(tmp_path / "whole" / "run")
    assert "scored in another process" in log_of(run)


def log_of(run: Path) -> str:
    return (run / "train.log").read_text() if (run / "train.log").exists() else ""


def trainings(run: Path) -> int:
    """How often training has begun in this folder."""
    return log_of(run).count("parameters")


def without_seconds(run: Path) -> list[dict[str, float]]:
    history = json.loads((run / "history.json").read_text())
    return [{k: round(v, 9) for k, v in one.items() if k != "seconds"} for one in history]
