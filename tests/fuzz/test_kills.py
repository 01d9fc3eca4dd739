"""SIGKILL before any file takes its name: the next call ends with what an undisturbed one leaves.

At random moments, with whole commands: tests/kills.py (`make kills`).
"""

from __future__ import annotations

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from fuzz import test_readers as readers
from fuzz.cases import snapshot

from captioner.data.formats import prepare
from captioner.data.scenes.dataset import draw_scenes
from captioner.evaluation.metrics import ScoringOptions
from captioner.evaluation.scores import score_files
from captioner.training.averaging import average_checkpoints
from captioner.training.checkpoint import save_checkpoint
from captioner.training.model_folder import save_folder

CHECKPOINT = readers.text_checkpoint()


def average(given: Path, out: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save_checkpoint(given / name, CHECKPOINT)
    save_checkpoint(out / "mean.pt", average_checkpoints([given / "a.pt", given / "b.pt"]))


def export(given: Path, out: Path) -> None:
    save_folder(out / "model", CHECKPOINT, card="x", overwrite=True)
    save_folder(out / "model", CHECKPOINT, card="y", overwrite=True)


def score(given: Path, out: Path) -> None:
    if not (given / "df.json").exists():
        readers.make_results(given)
    options = ScoringOptions(metrics=["BLEU"], samples=10)
    files = {"results": given / "a.json", "references": given / "refs.json"}
    score_files(**files, out=out / "scores.json", options=options)


def unpack(given: Path, out: Path) -> None:
    if not (given / "Flickr8k_text.zip").exists():
        readers.make_archives(given)
    out.mkdir(exist_ok=True)
    for archive in given.glob("*.zip"):
        shutil.copy(archive, out)
    elsewhere = "http://elsewhere/x.zip"
    prepare.prepare_flickr8k(root=out, download=False, images_url=elsewhere, text_url=elsewhere)


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "average": average,
    "export": export,
    "scores": score,
    "prepare": unpack,
    "feature extraction": readers.extracted,
    "captions": lambda given, out: readers.encoded_captions(out),
    "scenes": lambda given, out: draw_scenes(out, train=2, dev=1, test=1, size=32),
}


def killed(write: Callable[[], object], at: int) -> bool:
    """Whether a process that does it is killed by its `at`th renaming, which others do not have."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            rename, seen = Path.replace, count(1)

            def replace(path: Path, target: Path) -> Path:
                if next(seen) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return rename(path, target)

            Path.replace = replace  # type: ignore[method-assign, assignment]
            write()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_killed_before_a_file_took_its_name_ends_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "verify_flickr8k", lambda root: [])  # of two files and a caption
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    for file in ("x", "y"):
        (given / file).write_text(file)
    write = WRITERS[name]
    write(given, out)
    whole = snapshot(out)
    assert whole and not [one for one in whole if Path(one).name.startswith(".")]
    for at in count(1):
        shutil.rmtree(out)
        if not killed(lambda: write(given, out), at):
            break
        write(given, out)
        assert snapshot(out) == whole, f"killed by renaming {at}"
    assert at > 1
