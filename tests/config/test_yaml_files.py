"""A user's own YAML that cannot be used is named, with the line where that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import COMMANDS, call

from captioner.commands.cli import compose_config
from captioner.errors import CaptionerError

CONFIGS = Path(__file__).parents[2] / "configs"
HEAD = b"# @package _global_\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\n\ttrainer: 2\n", r"mine\.yaml, line 2: not YAML: .*'\\t'"),
        (b"seed: [1, 2\nname: x\n", r"mine\.yaml, line \d: not YAML: expected ',' or ']'"),
        (b"seed: 1\nname: x\nseed: 2\n", r"mine\.yaml, line 3: not YAML: found duplicate key seed"),
        (b"seed: 1\nname: caf\xe9\n", r"mine\.yaml, line 2: found the byte 0xe9, which is not UTF"),
        ("seed: 1\n".encode("utf-16"), r"mine\.yaml, line 1: found the byte 0xff"),
        (b"seed: 1\nname: a\x00b\n", r"mine\.yaml, line 2: not YAML: the character 0x0 is not"),
        (b"- seed: 1\n- name: x\n", r"mine\.yaml, line 1: expected keys with values, found a list"),
        (b"12\n", r"mine\.yaml: Invalid loaded object type: int"),
        (b"x: !!python/object:os.system [ls]\n", r"line 1: not YAML: could not determine a constr"),
        (b"x: " + b"[" * 600 + b"]" * 600, r"mine\.yaml: lists and keys are nested too deep"),
        (b"x: &a [*a]\n", r"mine\.yaml: lists and keys are nested too deep, or hold themselves"),
        (b"seed: " + b"9" * 5000, r"mine\.yaml: .*4300"),
        (b"defaults: 5\n", r"mine\.yaml: Invalid defaults list in 'experiment/mine'"),
        (b"defaults: [{a: b, c: d}]\n", r"mine\.yaml: In experiment/mine: Too many keys"),
        (b"defaults: [[1]]\n", r"mine\.yaml: Unsupported type in defaults : ListConfig"),
        (b"defaults: [mine]\n", r"a YAML names itself in its defaults list"),
        (
            HEAD + b"defaults: [override /encoder: torchvison]\n",
            r"experiment/mine\.yaml, line 2: there is no encoder 'torchvison', but .*'torchvision'",
        ),
        (HEAD + b"defaults: [override /nothing: x]\n", r"experiment/mine'.*/?nothing"),
        (HEAD + b"optimizer: {lr: fast}\n", r"experiment/mine': .*'fast'"),
        (HEAD + b"optimizer: {lrr: 1}\n", r"experiment/mine': .*lrr"),
    ],
)
def test_a_broken_yaml_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    overrides = ["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"]
    with pytest.raises(CaptionerError, match=message) as error:
        compose_config("train", overrides, configs=CONFIGS)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


def test_a_broken_yaml_in_config_dir_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("seed: 1\n\ttrainer: 2\n")
    monkeypatch.chdir(tmp_path)
    script = next(path for path in COMMANDS if path.stem == "train")
    arguments = ["--config-dir", ".", "experiment=mine", "run_dir=run"]
    assert call(script, *arguments, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/experiment/mine.yaml, line 2: not YAML")
    assert len(said.splitlines()) == 1
