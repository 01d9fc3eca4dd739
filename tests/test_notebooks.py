"""The lessons run from top to bottom, and are kept without their outputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_SECONDS = 240  # a hang, not slowness: the lessons take about half a minute on two cores

# Here the lessons run on less than a reader's: what is replaced by what.
SMALLER = {
    "01_the_way_the_data_takes": {"train=3000": "train=600", "EPOCHS = 9": "EPOCHS = 2"},
    "02_inside_a_character_model": {
        '"trainer.epochs=5"': '"trainer.epochs=2"',
        "epoch_windows=160": "epoch_windows=40",
        "(20, 100)": "(5, 20)",
        "steps=250": "steps=60",
        "range(10, 251, 10)": "range(10, 61, 10)",
    },
    "03_the_lstm_by_hand_and_fused": {'"trainer.epochs=3"': '"trainer.epochs=1"'},
    "04_reading_a_sweep": {'"trainer.epochs=4"': '"trainer.epochs=2"'},
    "05_captions_beams_and_mistakes": {
        "data.train=1600": "data.train=400",
        "data.dev=200": "data.dev=60",
        '"trainer.epochs=4"': '"trainer.epochs=2"',
    },
    "06_where_a_captioner_looks": {
        "train=1600": "train=400",
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
def test_lessons_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the extra [notebooks] is not installed")
    pytest.importorskip("ipykernel", reason="the extra [notebooks] is not installed")
    pytest.importorskip("matplotlib", reason="the extra [notebooks] is not installed")
    sources = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sources)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # Threads of such small work wait for each other longer than they compute on a busy machine.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # What the lesson shows of the package's log depends on nobody's notebook profile.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    notebook = smaller(path)
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3, f"{path.name} drew {len(pictures)} figures"
    assert not any(output.get("name") == "stderr" and "Error" in output.text for output in outputs)
