"""Whatever goes wrong in a command is one sentence, and the traceback lies in a file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from in_process import COMMANDS, call

from captioner.commands.failures import UnexpectedError, located, one_sentence
from captioner.errors import CaptionerError, ImageError

# What each command calls for its work, and the arguments that it cannot do without.
WORK = {
    "average": ("captioner.commands.average.average_checkpoints", "checkpoint=[a,b] out=c.pt"),
    "benchmark": ("benchmarks.command.describe_machine", "suite=metrics"),
    "caption": ("captioner.commands.caption.find_images", "checkpoint=a images=b"),
    "compare": ("captioner.commands.compare.load_record", "runs=[a,b]"),
    "demo": ("captioner.commands.demo.open_page", "checkpoint=a"),
    "evaluate": ("captioner.commands.evaluate.evaluate_files", "results=a references=b"),
    "export": ("captioner.commands.export.open_checkpoint", "checkpoint=a out=b"),
    "leaderboard": ("captioner.commands.leaderboard.gather", "folders=[a]"),
    "prepare_flickr8k": ("captioner.commands.prepare.prepare_flickr8k", ""),
    "recipe": ("captioner.commands.recipe.Progress", "out=o data.root=r"),
    "sample": ("captioner.commands.sample.load_language_model", "checkpoint=a"),
    "train": ("captioner.commands.train.build_trainer", "run_dir=run"),
}


def planted(*_: Any, **__: Any) -> NoReturn:
    raise ZeroDivisionError("planted,\nin two lines")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_an_unexpected_exception_is_one_sentence(
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    work, arguments = WORK[path.stem]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, planted)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert call(path, *arguments.split(), monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    sentence = said.err.splitlines()[-1]
    found = re.fullmatch(
        r"error: unexpected ZeroDivisionError in \S+\.py, line \d+: planted, in two lines; the "
        r"traceback is in (\S+), and CAPTIONER_TRACEBACK=1 shows it",
        sentence,
    )
    assert found is not None, said.err
    assert "Traceback" not in said.out + said.err
    kept = Path(found[1])
    assert "Traceback (most recent call last)" in kept.read_text()
    assert (kept == Path("run/traceback.txt")) == (path.stem == "train")


def test_a_defect_while_the_command_line_is_read_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captioner.commands.cli.parse", planted)
    monkeypatch.setenv("CAPTIONER_TRACEBACK", "1")
    script = next(path for path in COMMANDS if path.stem == "leaderboard")
    assert call(script, "folders=[a]", monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: unexpected ZeroDivisionError in captioner/")
    assert "Traceback (most recent call last)" in said


def test_a_working_directory_that_was_removed_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert call(COMMANDS[0], monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == (
        "error: the working directory was removed; change to one that exists\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.45 GiB for an array"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807]"),
    ],
)
def test_memory_that_is_short_is_said(error: Exception) -> None:
    told = r"memory is short in .*, line \d+: "
    with pytest.raises(CaptionerError, match=told) as found, located():
        raise error
    assert not isinstance(found.value, UnexpectedError)


def test_what_a_loading_process_raised_comes_without_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = "Caught ImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call"
    with pytest.raises(SystemExit), one_sentence("train"):
        raise ImageError(f"{told} last):\n  File ...\ncaptioner.errors.ImageError: a.jpg: cut\n")
    assert capsys.readouterr().err == "error: a.jpg: cut\n"


def test_a_traceback_that_cannot_be_kept_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    told = "could not be kept: No such file"
    with pytest.raises(UnexpectedError, match=told), located(tmp_path / "no_run"):
        planted()
    assert sys.exc_info() == (None, None, None)
