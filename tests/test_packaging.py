"""The package as others meet it: what it declares, what it needs, what it says of itself."""

from __future__ import annotations

import ast
import logging
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import captioner
from captioner.ops import backend

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

PATHS = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
# Where the name that is imported is not the name that is installed.
DISTRIBUTIONS = {"PIL": "pillow", "hydra": "hydra-core", "yaml": "pyyaml"}

# Imports every module of the given packages while the named distributions cannot be imported.
BARE_IMPORT = """
import importlib, pkgutil, sys

absent, packages = (set(text.split(",")) for text in sys.argv[1:3])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent or name in absent:
            raise ModuleNotFoundError(f"No module named {name!r} (kept out by the test)", name=name)

sys.meta_path.insert(0, Absent())
failed = []
for package in sorted(packages):
    parent = importlib.import_module(package)
    names = [m.name for m in pkgutil.iter_modules(getattr(parent, "__path__", []), package + ".")]
    for name in [package, *names]:
        if name in sys.argv[3].split(","):
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            failed.append(f"{name}: {error}")
        else:
            print(name)
sys.exit("\\n".join(failed) or 0)
"""


def array(key: str) -> list[str]:
    """The strings of a TOML array `key = [...]`; tomllib only exists from Python 3.11."""
    found = re.search(rf"^{key} = \[(.*?)^\]", PROJECT, flags=re.MULTILINE | re.DOTALL)
    assert found, f"pyproject.toml has no array {key}"
    return re.findall(r'^\s*"([^"]+)"', found.group(1), flags=re.MULTILINE)


def test_version_is_the_same_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"', PROJECT, flags=re.MULTILINE)
    assert declared and declared.group(1) == captioner.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\]", changes, flags=re.MULTILINE)
    assert released[0] == captioner.__version__


def test_installed_version() -> None:
    try:
        installed = metadata.version("captioner")
    except metadata.PackageNotFoundError:
        pytest.skip("captioner runs from its sources here and is not installed")
    assert installed == captioner.__version__, "run `make setup` again"


def test_requirements() -> None:
    assert 'requires-python = ">=3.10,<3.14"' in PROJECT
    needed = array("dependencies")
    assert {"torch>=2.11", "torchvision>=0.26"} <= set(needed)
    names = {re.split(r"[<>=\[]", one)[0] for one in needed}
    assert {"hydra-core", "tensorboard", "pycocotools", "nltk"} <= names
    assert not {name for name in names if name.startswith(("timm", "pytest", "mypy", "ruff"))}


@pytest.mark.filterwarnings("ignore")  # setuptools' own cannot be sent between processes
def test_a_wheel_holds_the_configuration_and_the_console_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What setuptools would copy into it, the extension apart."""
    dist = pytest.importorskip("setuptools.dist")
    monkeypatch.chdir(ROOT)
    distribution = dist.Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    build = distribution.get_command_obj("build_py")
    build.build_lib = str(tmp_path)
    build.ensure_finalized()
    copied = {Path(one).relative_to(tmp_path) for one in build.get_outputs(include_bytecode=False)}
    configs = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    assert Path("configs/train.yaml") in configs
    configs.remove(Path("configs/benchmark.yaml"))  # whose command stays in a checkout
    found = {one.relative_to("captioner") for one in copied if one.is_relative_to("captioner")}
    assert {one for one in found if one.parts[0] == "configs"} == configs
    assert distribution.entry_points["console_scripts"] == ["captioner = captioner.__main__:main"]


def test_every_import_is_declared() -> None:
    """What the packages import is required by captioner or by one of its extras."""
    imported: set[str] = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"captioner", "benchmarks"}
    assert {"torch", "numpy"} <= foreign
    declared = {
        re.split(r"[<>=\[]", one)[0]
        for key in ("dependencies", "timm", "plots", "meteor", "onnx", "page", "sweeps", "bpe")
        for one in array(key)
    }
    needed = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in foreign}
    assert not needed - declared


def test_runs_on_the_oldest_python() -> None:
    """The sources parse as Python 3.10; newer library functions are mypy's to find."""
    folders = ("src", "benchmarks", "scripts", "tests")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    for path in sources:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60, f"{path.name} has {len(lines)} lines: logic belongs into the package"
    assert lines[0].startswith('"""'), f"{path.name} does not say what it is for"


def test_help_of_a_command(tmp_path: Path, run_script: Any) -> None:
    done = run_script(tmp_path, "train", "--help")
    assert done.returncode == 0, done.stderr
    for key in ("hidden_size", "batch_size", "run_dir"):
        assert key in done.stdout


# A bare GPU machine's benchmark; the other suites need data, images and configuration.
BENCHMARK = ",".join(f"benchmarks.{name}" for name in ("gpu_check", "lstm_small_case"))


@pytest.mark.parametrize(
    ("package", "more"),
    [
        ("captioner.ops,captioner.models,captioner.training", ""),
        (BENCHMARK, ",PIL,hypothesis,safetensors"),
    ],
)
def test_core_needs_only_torch(package: str, more: str) -> None:
    """A bare GPU machine runs kernels, models and training with torch, numpy and pillow.

    The benchmark of the kernels does without pillow, too.
    """
    absent = "hydra,omegaconf,nltk,tensorboard,pycocotools,tqdm,timm,torchvision,matplotlib" + more
    own = ",".join(
        f"captioner.models.{name}" for name in ("encoders", "torchvision_encoder", "plain_encoder")
    )
    done = subprocess.run(
        [sys.executable, "-c", BARE_IMPORT, absent, package, own],
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 1, f"found no modules in {package}: {done.stdout!r}"


def test_blocker_blocks() -> None:
    """The test above can fail: with torch kept out, nothing imports."""
    done = subprocess.run(
        [sys.executable, "-c", BARE_IMPORT, "torch", "captioner.training", ""],
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
    )
    assert done.returncode != 0
    assert "kept out by the test" in done.stderr


def test_backend_is_named_aloud(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAPTIONER_LSTM", raising=False)
    for name in vars(backend).values():
        if hasattr(name, "cache_clear"):
            name.cache_clear()  # it speaks once in a process
    with caplog.at_level(logging.INFO, logger="captioner"):
        chosen = captioner.ops.choose_backend("auto", "cpu")
    assert chosen in backend.BACKENDS[1:]
    assert any(chosen in record.getMessage() for record in caplog.records)


def test_makefile_documents_its_targets() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make here")
    done = subprocess.run(
        [make, "-C", str(ROOT), "help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    targets = (
        "demo",
        "train",
        "evaluate",
        "caption",
        "sample",
        "compare",
        "sweep",
        "leaderboard",
        "flickr8k",
        "flickr8k-best",
        "test",
        "test-sanitized",
        "test-cuda-build",
        "lint",
        "format",
        "check",
        "benchmark",
        "gpu-check",
        "clean",
    )
    for target in targets:
        assert re.search(rf"make {target}\s+\w", done.stdout), f"make help is silent on {target}"


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100, ".ci/run is not executable"
    commands = [line for line in script.read_text(encoding="utf-8").splitlines() if "make" in line]
    assert any(re.search(r"\btest-cuda-build test$", line) for line in commands)
