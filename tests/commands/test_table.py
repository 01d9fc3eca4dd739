"""`captioner COMMAND`: the list, the commands behind it, and how a command is typed again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from in_process import begin

from captioner import __main__, __version__
from captioner import config as schema
from captioner.commands import table
from captioner.commands.cli import CONFIGS
from captioner.commands.table import COMMANDS, typed, typed_path

ROOT = Path(__file__).parents[2]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str, program: str = "captioner") -> int:
    return begin(__main__.main, program, *arguments, monkeypatch=monkeypatch)


def test_every_command_has_a_script_a_schema_and_a_configuration() -> None:
    assert set(COMMANDS) == set(schema.COMMANDS) - {"benchmark"}
    for name in COMMANDS:
        assert f'run_command("{name}")' in (ROOT / f"scripts/{name}.py").read_text("utf-8")
        assert (CONFIGS / f"{name}.yaml").is_file()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_the_commands_are_listed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in said and command.about in said


def test_a_command_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert call(monkeypatch, "average", "--help", program="/bin/captioner") == 0
    said = capsys.readouterr().out
    assert "captioner average checkpoint=[" in said and "scripts/" not in said
    (tmp_path / "hyp.json").write_text('[{"image_id": 1, "caption": "a dog runs"}]')
    refs = '{"annotations": [{"image_id": 1, "caption": "a dog runs"}]}'
    (tmp_path / "refs.json").write_text(refs)
    files = ("results=hyp.json", "references=refs.json", "metrics=[BLEU]", "samples=0")
    assert call(monkeypatch, "evaluate", *files) == 0
    assert "| hyp | BLEU-1 to 4: 100.0 / 100.0" in capsys.readouterr().out
    assert call(monkeypatch, "trian") == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("captioner ev", ["evaluate"]),
        ("captioner train optimizer.l", ["optimizer.lr="]),
    ],
)
def test_the_shell_completes_commands_and_keys(
    line: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert call(monkeypatch, "-sc", "query=bash") == 0
    assert capsys.readouterr().out.split() == expected


def test_a_command_is_typed_as_this_one_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = Path(sys.executable)
    monkeypatch.setattr(table.shutil, "which", lambda name: str(python.with_name(name)))
    monkeypatch.chdir(ROOT)

    def started(program: Path | str, **values: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(program)])
        return typed("caption", **values)

    assert started("scripts/train.py") == "python scripts/caption.py"
    assert started(ROOT / "scripts/train.py") == "python scripts/caption.py"
    assert started(ROOT / "src/captioner/__main__.py") == "python -m captioner caption"
    assert started(python.with_name("captioner")) == "captioner caption"
    assert started("notebook") == "python -m captioner caption"
    assert started(tmp_path / "captioner") == f"{tmp_path}/captioner caption"
    given = started("scripts/train.py", checkpoint="outputs/x_lr=1,h=2/best.pt", images="a b.jpg")
    assert (
        given == "python scripts/caption.py checkpoint=outputs/x_lr=1,h=2/best.pt 'images=a b.jpg'"
    )
    monkeypatch.setattr(table.shutil, "which", lambda name: None)
    assert started("scripts/train.py") == f"{typed_path(python)} scripts/caption.py"
