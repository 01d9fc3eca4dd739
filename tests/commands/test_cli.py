"""What every script has on the command line: help with examples, clean output, completion."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from in_process import COMMANDS, SCRIPTS, call
from omegaconf import OmegaConf

from captioner.commands import table
from captioner.commands.cli import (
    _print_anything,
    compose_config,
    gather_list,
    quote,
    threads_in_sweep,
)
from captioner.commands.table import Command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_has_an_example(
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(path, "--help", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert f"python scripts/{path.name}" in said, f"{path.name} --help shows no example"
    assert said.split("\n")[0].strip(), f"{path.name} --help does not begin with its purpose"
    assert list(tmp_path.iterdir()) == [], "help leaves files behind"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_cfg_job_is_yaml_and_nothing_else(
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(path, "--cfg", "job", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert said.err == ""
    tree = yaml.safe_load(said.out)
    assert isinstance(tree, dict) and tree and "hydra" not in tree
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("exp", "experiment="),
        ("experiment=w", "experiment=words"),
        ("optimizer.l", "optimizer.lr="),
    ],
)
def test_completion_knows_groups_choices_and_keys(
    typed: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = f"python scripts/train.py {typed}"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    script = ROOT / "scripts" / "train.py"
    assert call(script, "-sc", "query=bash", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert said.out.split() == [expected] and said.err == ""


def test_completion_installs_in_bash() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    install = f'eval "$({sys.executable} scripts/train.py -sc install=bash)"'
    done = subprocess.run(
        [bash, "--norc", "-c", f"{install} && complete -p"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"-F hydra_bash_completion .*python", done.stdout)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optimizer.lr=1e-3,3e-3", "optimizer.lr=1e-3,3e-3"),
        ("checkpoint=s/a=1,b=2/best.pt", "checkpoint='s/a=1,b=2/best.pt'"),
        ("checkpoint='s/a=1/best.pt'", "checkpoint='s/a=1/best.pt'"),
        ("lr=range(start=1,stop=3)", "lr=range(start=1,stop=3)"),
        ("--config-dir=a=b", "--config-dir=a=b"),
        ("run_dir=outputs/caf\u00e9", "run_dir='outputs/caf\u00e9'"),
        ("run_dir=caf\udce9/x", "run_dir='caf\udce9/x'"),
        ("name=\u00e9,\u00f6", "name=\u00e9,\u00f6"),
    ],
)
def test_a_path_below_a_sweep_needs_no_quotes(argument: str, expected: str) -> None:
    assert quote(argument) == expected


def test_arguments_without_a_key_are_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1,h=2").mkdir()
    arguments = ["a b", "samples=9", "lr=1,h=2", "--cfg", "job"]
    assert gather_list(arguments, "runs") == [
        "samples=9",
        "--cfg",
        "job",
        "runs=['a b','lr=1,h=2']",
    ]
    assert gather_list(["samples=9"], "runs") == ["samples=9"]


def test_runs_beside_each_other_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    shares = [threads_in_sweep(OmegaConf.create({"n_jobs": n})) for n in (1, 2, 3, 8, 16, -1, -7)]
    assert shares == [None, 4, 2, 1, 1, 1, 4]
    assert threads_in_sweep(OmegaConf.create({"cpus_per_task": 3})) == 3
    assert threads_in_sweep(OmegaConf.create({"_target_": "BasicLauncher"})) is None
    assert torch.get_num_threads() >= 1


def test_a_configuration_is_composed_within_a_running_job() -> None:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        running = GlobalHydra.instance().hydra
        assert compose_config("train", configs=ROOT / "configs").data.kind == "scenes"
        assert GlobalHydra.instance().hydra is running
    assert not GlobalHydra.instance().is_initialized()


def test_a_terminal_shows_what_its_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no UTF-8, a letter that is no ASCII: printed as an escape."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    _print_anything()
    print(os.fsdecode(b"caf\xe9"), "\u00e9", flush=True)
    assert written.getvalue() == b"caf\\udce9 \\xe9\n"


@pytest.mark.parametrize(
    ("arguments", "modes"),
    [
        ([], [RunMode.RUN]),
        (["hydra.mode=MULTIRUN"], [RunMode.MULTIRUN]),
        (["--config-dir=more", "+sets=mode"], [RunMode.MULTIRUN]),
    ],
    ids=["nothing", "an override", "a YAML of one's own"],
)
def test_what_sets_hydras_mode_is_followed(
    arguments: list[str], modes: list[RunMode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing is composed to find out."""
    (tmp_path / "more" / "sets").mkdir(parents=True)
    (tmp_path / "more" / "sets" / "mode.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n"
    )
    monkeypatch.chdir(tmp_path)
    composed: list[Any] = []
    ran: list[Any] = []
    compose = Hydra.compose_config

    def counted(*given: Any, **settings: Any) -> Any:
        composed.append(given)
        return compose(*given, **settings)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    task = Command("Nothing", lambda _: ran.append(HydraConfig.get().mode))
    monkeypatch.setitem(table.COMMANDS, "caption", task)
    script = ROOT / "scripts" / "caption.py"
    given = [*arguments, "checkpoint=a.pt", "images=b.jpg", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(script, *given, monkeypatch=monkeypatch) == 0
    assert ran == modes
    assert arguments or len(composed) == 1
