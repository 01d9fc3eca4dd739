"""setup.py where something is missing: one sentence, and a package that works without it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.ops import extension

ROOT = Path(__file__).parents[1]
WITHOUT = "captioner is installed without its compiled LSTM"
BUILD = ("--quiet", "build_ext", "--inplace")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setup.py needs, without what was built before."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    built = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=built)
    return tmp_path


def run(checkout: Path, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "CAPTIONER_CUDA"}
    return subprocess.run(
        command,
        cwd=checkout,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def run_setup(checkout: Path, run_script: Run) -> Run:
    """Run setup.py, in a process that has imported torch before."""

    def begin(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"CAPTIONER_CUDA": "auto", **environment}
        return run_script(checkout, checkout / "setup.py", *arguments, environment=settings)

    return begin


def backend(checkout: Path) -> str:
    """What the package in `checkout` says of the LSTM that it takes, computing with it."""
    script = (
        "import logging, torch; logging.basicConfig(level='INFO', format='%(message)s')\n"
        "from captioner.models.lstm import LSTM; print(LSTM(3, 2)(torch.zeros(4, 1, 3))[0].shape)"
    )
    done = run(checkout, [sys.executable, "-c", script], PYTHONPATH=str(checkout / "src"))
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_without_a_compiler_it_says_so_and_works(
    checkout: Path, run_setup: Run, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_setup(*BUILD, PATH=str(empty), CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert f"{WITHOUT} and scores: no C++ compiler was found" in done.stderr
    said = backend(checkout)
    assert "LSTM backend on cpu: reference (the extension is not built here (`python set" in said


def test_a_wheel_holds_the_package_alone(checkout: Path, run_setup: Run, tmp_path: Path) -> None:
    """benchmarks/ is run from a checkout."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    done = run_setup("--quiet", "build_py", "--build-lib", "wheel", CAPTIONER_CUDA="0")
    assert done.returncode == 0, done.stderr
    packages = {path.name for path in (checkout / "wheel").iterdir()}
    assert packages == {"captioner", "hydra_plugins"}
    assert not [path for path in (checkout / "wheel").rglob("*") if "benchmark" in path.name]


def test_without_pytorch_it_says_so(checkout: Path) -> None:
    blocked = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--name']\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = run(checkout, [sys.executable, "-c", blocked])
    assert done.returncode == 0, done.stderr
    assert f"{WITHOUT}: PyTorch is not in the build environment" in done.stderr


def test_a_source_that_does_not_compile_ends_in_a_sentence(checkout: Path, run_setup: Run) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    for source in (checkout / "csrc").rglob("*.cpp"):
        source.write_text("" if source.name != "ops.cpp" else "#error broken\n")
    done = run_setup(*BUILD, CAPTIONER_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert f"{WITHOUT}: " in done.stderr
    built = checkout / "src" / "captioner" / "evaluation" / "_scoring.abi3.so"
    assert list((checkout / "src").rglob("*.so")) == [built]


def test_a_library_that_cannot_be_loaded_is_named(checkout: Path) -> None:
    (checkout / "src" / "captioner" / "ops" / "_extension.abi3.so").write_bytes(b"not a library")
    said = backend(checkout)
    assert "LSTM backend on cpu: reference (the extension cannot be loaded: " in said
    assert "builds it anew" in said


@pytest.mark.parametrize(
    ("value", "home", "message"),
    [
        ("maybe", "", "CAPTIONER_CUDA must be auto, 0 or 1, got 'maybe'"),
        ("1", "/no/such/folder", "CAPTIONER_CUDA=1 needs nvcc and a CUDA build of PyTorch"),
    ],
)
def test_a_wrong_wish_for_cuda_is_refused(
    run_setup: Run, value: str, home: str, message: str
) -> None:
    done = run_setup(*BUILD, CAPTIONER_CUDA=value, CUDA_HOME=home)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.skipif(extension.ABSENT is not None, reason=str(extension.ABSENT))
def test_an_extension_of_older_sources_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "OPERATORS", ("lstm_packed", "operator_of_tomorrow"))
    assert "an older one, without operator_of_tomorrow" in str(extension._load())


def test_every_operator_is_looked_for() -> None:
    """Without one of them the package would not be imported."""
    defined = re.findall(r'"(\w+)\(', (ROOT / "csrc/ops.cpp").read_text())
    assert {name for name in defined if not name.endswith("_backward")} == {*extension.OPERATORS}
