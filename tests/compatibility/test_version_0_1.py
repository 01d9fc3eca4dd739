"""What version 0.1 left behind is read: checkpoints, run folders, exported models and scores.

The archive is made by make_fixtures.sh with the code of that version. Everything goes through
captioner.load and the scripts. CAPTIONER_TREE names another checkout whose scripts are to be tested
(with PYTHONPATH for its package), such as that of version 0.1 itself.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from compatibility.fixture_files import curve, digest, final_weights, machine
from safetensors.torch import load_file
from script_runner import REPOSITORY, Scripts

import captioner

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
TREE = Path(os.environ.get("CAPTIONER_TREE", HERE.parents[1]))
# The groups' names in the checkout whose scripts run.
OLD_NAMES = (TREE / "configs" / "decoder").is_dir()
MODEL, GENERATION = ("decoder", "decode") if OLD_NAMES else ("model", "generation")
# How far a machine with other vector instructions may be; with SSE alone it was a tenth of that.
WEIGHTS, TRAINING_LOSS, VALIDATION_LOSS = 2e-5, 1e-4, 2e-3
CAPTIONS = f"""
    data.root=scenes data.train=24 data.dev=8 data.test=6 data.size=32 vocabulary.min_count=1
    encoder.name=plain_small encoder.weights=encoder.safetensors encoder.size=32
    {MODEL}.backend=reference {MODEL}.embedding_dim=12 {MODEL}.hidden_size=16
    {MODEL}.input_dropout=0.1 {MODEL}.output_dropout=0.1 optimizer.lr=1e-2
    trainer.batch_by=picture trainer.batch_size=4 trainer.workers=0 trainer.best_metric=CIDEr-D
    trainer.log_steps=1 trainer.progress=false {GENERATION}=greedy
"""
TEXT = f"""
    data=text data.path=book.txt data.cache_dir=text_cache data.test_fraction=0.1
    encoder=none vocabulary.min_count=1 {GENERATION}=greedy
    {MODEL}.backend=reference {MODEL}.embedding_dim=6 {MODEL}.hidden_size=12
    {MODEL}.num_layers=2 {MODEL}.layer_dropout=0.1 {MODEL}.output_dropout=0.1
    optimizer.lr=1e-2 trainer.best_metric=loss trainer.batch_size=4 trainer.window=16
    trainer.log_steps=1 trainer.progress=false
"""


@dataclass(frozen=True)
class Place:
    """A copy of the archive for one test to write in, and the scripts to run there."""

    folder: Path
    scripts: Scripts

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        script, *arguments = command.split()
        return self.scripts.run(self.folder, script, *arguments)

    def succeed(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version_0_1")
    with tarfile.open(HERE / "fixtures" / "version_0_1.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def scripts_of_tree(scripts: Scripts) -> Iterator[Scripts]:
    if TREE == REPOSITORY:
        yield scripts
    else:
        others = Scripts(TREE)
        yield others
        others.close()


@pytest.fixture
def place(archive: Path, tmp_path: Path, scripts_of_tree: Scripts) -> Place:
    shutil.copytree(archive, tmp_path / "place")
    return Place(tmp_path / "place", scripts_of_tree)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_nothing_of_a_machine_is_in_the_archive(archive: Path) -> None:
    files = [path for path in archive.rglob("*") if path.is_file()]
    assert len(files) > 80
    for path in files:
        content = path.read_bytes()
        assert not any(place in content for place in (b"/root", b"/work", b"/tmp", b"/home")), path


@pytest.mark.parametrize("name", ["captioner", "captioner/best.pt", "caption_model"])
def test_a_captioner_says_the_same(archive: Path, name: str) -> None:
    model = captioner.load(archive / name, device="cpu")
    recorded = read(archive / "expected" / "expected_captions.json")
    photos = [archive / one["image"] for one in recorded]
    found = model.captions(photos, beam_size=3, n_best=2)
    for one, captions in zip(recorded, found, strict=True):
        assert [c.text for c in captions] == [c["caption"] for c in one["captions"]]
        log_probs = [c["log_prob"] for c in one["captions"]]
        assert [c.log_prob for c in captions] == pytest.approx(log_probs, abs=1e-4)
    # What it was validated with is greedy search, as the recorded evaluation.
    evaluated = read(archive / "captioner" / "train_greedy" / "captions.json")
    told = {one["image_id"]: one["caption"] for one in evaluated}
    assert model.caption(photos) == [told[photo.name] for photo in photos]


@pytest.mark.parametrize("name", ["writer", "writer/last.pt", "text_model"])
def test_a_language_model_writes_the_same(archive: Path, name: str) -> None:
    recorded = read(archive / "expected" / "expected_samples.json")
    model = captioner.load(archive / name, device="cpu")
    found = model.samples(recorded["prompt"], length=60, n=2, seed=3, temperature=0.8)
    assert [one.text for one in found] == [one["text"] for one in recorded["samples"]]


def test_a_captioner_scores_the_same(place: Place) -> None:
    place.succeed(
        f"evaluate checkpoint=captioner/best.pt split=dev {GENERATION}=beam "
        f"{GENERATION}.beam_size=3 samples=200 report=0 out=again"
    )
    before, now = (place.json(f"{name}/scores.json") for name in ("captioner/dev_beam3", "again"))
    assert figures(now) == pytest.approx(figures(before), abs=1e-3)
    assert now["captions"] == before["captions"]
    captions = [place.json(f"{name}/captions.json") for name in ("captioner/dev_beam3", "again")]
    assert captions[0] == captions[1]
    assert len(list((place.folder / "scenes").iterdir())) == 1, "other scenes were drawn"


def test_a_language_model_scores_the_same(place: Place) -> None:
    place.succeed("evaluate checkpoint=text_model split=test out=again")
    before, now = (place.json(f"{name}/scores.json") for name in ("writer/test", "again"))
    known = figures(before)
    assert {key: figures(now)[key] for key in known} == pytest.approx(known, abs=1e-4)


def figures(scores: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in scores.items() if isinstance(value, float)}


def test_a_stopped_captioner_ends_where_it_would_have_ended(place: Place) -> None:
    place.succeed(f"train {CAPTIONS} run_dir=stopped_captioner trainer.epochs=6 resume=true")
    check_end(place, "stopped_captioner")


def test_a_stopped_language_model_ends_where_it_would_have_ended(place: Place) -> None:
    run = place.folder / "stopped_writer"
    shutil.copy(run / "epoch_2.pt", place.folder / "old.pt")
    place.succeed(
        f"train {TEXT} run_dir=stopped_writer trainer.epochs=4 trainer.ema=0.9 "
        "trainer.keep_epochs=2 resume=true"
    )
    check_end(place, "stopped_writer")
    # A checkpoint from before and one from after the resume are of the same run.
    place.succeed("average checkpoint=[old.pt,stopped_writer/epoch_4.pt] out=averaged.pt")
    assert captioner.load(place.folder / "averaged.pt", device="cpu").generate("The ", length=20)


def test_stopped_replicas_end_where_they_would_have_ended(place: Place) -> None:
    place.succeed(
        f"train {TEXT} run_dir=stopped_replicas trainer.epochs=4 trainer.replicas=2 "
        "replicas.lr=[1e-2,5e-3] resume=true"
    )
    check_end(place, "stopped_replicas/replica_0")
    check_end(place, "stopped_replicas/replica_1")


def check_end(place: Place, folder: str) -> None:
    """The weights are those of version 0.1."""
    name = folder.replace("/", "_")
    found = final_weights(place.folder / folder)
    weights = load_file(place.folder / "expected" / f"{name}.safetensors")
    assert found.keys() == weights.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, weights[key], rtol=0, atol=WEIGHTS)
    check_training(place, folder)


def check_training(place: Place, folder: str) -> None:
    """The losses are those of version 0.1, and so is every bit on the machine that recorded it."""
    recorded = place.json("expected/finals.json")
    expected = recorded["runs"][folder.replace("/", "_")]
    for before, now in zip(expected["history"], curve(place.folder / folder), strict=True):
        assert now["step"] == before["step"]
        assert now["train_loss"] == pytest.approx(before["train_loss"], abs=TRAINING_LOSS)
        assert now["loss"] == pytest.approx(before["loss"], abs=VALIDATION_LOSS)
    if machine() == recorded["machine"]:
        assert digest(final_weights(place.folder / folder)) == expected["sha256"]


def test_a_new_captioner_is_trained_as_before(place: Place) -> None:
    place.succeed(
        f"train {CAPTIONS} run_dir=new_captioner encoder.weights=random trainer.epochs=10"
    )
    assert place.json("new_captioner/history.json")[-1]["step"] == 60
    check_training(place, "new_captioner")


def test_a_new_language_model_is_trained_as_before(place: Place) -> None:
    place.succeed(f"train {TEXT} run_dir=new_writer trainer.epoch_windows=10 trainer.epochs=6")
    assert place.json("new_writer/history.json")[-1]["step"] == 60
    check_training(place, "new_writer")
    # Beside a run of version 0.1 it differs in no setting but these.
    place.succeed("leaderboard writer new_writer page=board.html out=board.csv")
    with (place.folder / "board.csv").open() as file:
        columns = set(csv.DictReader(file).fieldnames or ())
    assert columns >= {"trainer.epochs", "trainer.epoch_windows"}
    assert not [name for name in columns if "hidden_size" in name or "beam_size" in name]


def test_a_finished_run_is_not_repeated(place: Place) -> None:
    before = (place.folder / "captioner" / "last.pt").read_bytes()
    again = f"train {CAPTIONS} run_dir=captioner trainer.epochs=80 resume=true"
    assert "captioner/best.pt" in place.succeed(again)
    done = place.run(f"{again} {MODEL}.hidden_size=32")
    assert done.returncode == 2
    assert f"{MODEL}.hidden_size was 16, now 32" in done.stderr
    assert done.stderr.count(" was ") == 1
    assert (place.folder / "captioner" / "last.pt").read_bytes() == before


def test_a_sweep_finds_its_runs_finished(place: Place) -> None:
    sweep = place.folder / "sweep"
    before = sorted(sweep.rglob("*"))
    place.succeed(f"train -m {TEXT} sweep_dir=sweep trainer.epochs=1 {MODEL}.hidden_size=10,8")
    # Their checkpoints are not in the archive and would be there again.
    assert sorted(sweep.rglob("*")) == before


def test_a_checkpoint_is_exported_as_before(place: Place) -> None:
    place.succeed("export checkpoint=captioner/best.pt out=exported")
    for name in ("model.safetensors", "vocabulary.json"):
        before, now = (place.folder / folder / name for folder in ("caption_model", "exported"))
        assert now.read_bytes() == before.read_bytes()


def test_scores_are_compared_as_before(place: Place) -> None:
    place.succeed("compare captioner/dev_beam3 captioner/dev_greedy samples=200 out=again.json")
    before, now = place.json("expected/expected_comparison.json"), place.json("again.json")
    assert now["values"].keys() == before["values"].keys()
    for metric, values in now["values"].items():
        assert values == pytest.approx(before["values"][metric], abs=1e-6)


def test_runs_are_ranked_as_before(place: Place) -> None:
    place.succeed("leaderboard captioner writer page=board.html out=again.json")
    before, now = place.json("expected/expected_board.json"), place.json("again.json")
    # The interval is that of the evaluation with the run's own decoding: greedy, not beam.
    assert now == before
    assert "captioner" in (place.folder / "board.html").read_text()
