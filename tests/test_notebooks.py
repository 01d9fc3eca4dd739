"""The lessons run from top to bottom, and are kept without their outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 240  # a hang, not slowness: a lesson takes a few seconds here
IN_JUPYTER = "03_the_lstm_by_hand_and_fused"  # the others run in IPython, which a kernel wraps

# Here the lessons run on less than a reader's: what is replaced by what.
SMALLER = {
    "01_the_way_the_data_takes": {"train=3000": "train=160", "EPOCHS = 9": "EPOCHS = 2"},
    "02_inside_a_character_model": {
        "data.dev_fraction=0.02": "data.dev_fraction=0.001",
        "model.hidden_size=192": "model.hidden_size=32",
        '"trainer.epochs=5"': '"trainer.epochs=2"',
        "epoch_windows=160": "epoch_windows=10",
        "(20, 100)": "(2, 5)",
        "[:3000]": "[:500]",
        "500:1600": "300:500",
        "[:1100]": "[:200]",
        "delay=50, steps=250": "delay=10, steps=40",
        "range(10, 251, 10)": "range(10, 41, 10)",
    },
    "03_the_lstm_by_hand_and_fused": {
        "4000, replace": "300, replace",
        "range(5)": "range(2)",
        '"trainer.epochs=3"': '"trainer.epochs=1"',
    },
    "04_reading_a_sweep": {
        "data.train=100": "data.train=24",
        "data.dev=20": "data.dev=6",
        '["0", "1"]': '["0"]',
        '"trainer.epochs=4"': '"trainer.epochs=2"',
    },
    "05_captions_beams_and_mistakes": {
        "data.train=1600": "data.train=120",
        "data.dev=200": "data.dev=24",
        "range(50)": "range(24)",
        '"trainer.epochs=4"': '"trainer.epochs=2"',
    },
    "06_where_a_captioner_looks": {
        "train=1600": "train=320",
        "dev=100": "dev=40",
        '"trainer.epochs=4"': '"trainer.epochs=2"',
    },
}

nbformat = pytest.importorskip("nbformat", reason="the extra [notebooks] is not installed")


def test_there_is_a_lesson() -> None:
    assert NOTEBOOKS, f"no notebook in {ROOT / 'notebooks'}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    left = [number for number, cell in enumerate(cells) if cell.outputs or cell.execution_count]
    assert not left, f"code cells {left} of {path.name} keep outputs: clear them before a commit"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_lessons_define_nothing_reusable(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        lines = cell.source.splitlines() if cell.cell_type == "code" else []
        defined = [line for line in lines if line.startswith(("def ", "class "))]
        assert not defined, f"{path.name} defines {defined[0]!r}; it belongs into the package"


def smaller(path: Path) -> Any:
    """A lesson with the numbers of SMALLER."""
    notebook = nbformat.read(path, as_version=4)
    for number, less in SMALLER[path.stem].items():
        cells = [cell for cell in notebook.cells if number in cell.source]
        assert cells, f"{path.name} has no {number}"
        for cell in cells:
            cell.source = cell.source.replace(number, less)
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_lessons_run(path: Path, tmp_path: Path, run_script: Any) -> None:
    for package in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(package, reason="the extra [notebooks] is not installed")
    environment = {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])
        ),
        "TMPDIR": str(tmp_path),
        # Threads of such small work wait for each other longer than they compute on a busy machine.
        "OMP_NUM_THREADS": "1",
        # What the lesson shows of the package's log depends on nobody's notebook profile.
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    run = run_in_jupyter if path.stem == IN_JUPYTER else run_in_ipython
    outputs = run(smaller(path), tmp_path, environment, run_script)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3, f"{path.name} drew {len(pictures)} figures"
    said = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not any("Error" in text for text in said), said
    assert list(tmp_path.glob("captioner-lesson-*")), "the lesson wrote elsewhere"


def run_in_jupyter(
    notebook: Any, folder: Path, environment: dict[str, str], _: Any
) -> list[dict[str, Any]]:
    """Run a notebook as a reader does, in a kernel that Jupyter's client starts; its outputs."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources)
    client.execute(env={**os.environ, **environment})
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def run_in_ipython(
    notebook: Any, folder: Path, environment: dict[str, str], run_script: Any
) -> list[dict[str, Any]]:
    """Run its cells in an IPython that needs not import torch again; their outputs."""
    given, out = folder / "lesson.ipynb", folder / "outputs.json"
    nbformat.write(notebook, given)
    script = Path(__file__).parent / "run_lesson.py"
    done = run_script(
        folder, script, str(given), str(out), environment=environment, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    outputs: list[dict[str, Any]] = json.loads(out.read_text())
    return outputs
