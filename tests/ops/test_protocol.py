"""How blocks exchange a step's results: models of it, checked exhaustively by spin.

The head of each protocol/*.pml says what is modelled. A planted fault must be found.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).with_name("protocol")
SIZES = {
    "two blocks of two warps, four steps": ("BLOCKS=2", "WARPS=2", "STEPS=4"),
    "three blocks of one warp, four steps": ("BLOCKS=3", "WARPS=1", "STEPS=4"),
    "two blocks of three warps, two steps": ("BLOCKS=2", "WARPS=3", "STEPS=2"),
}
TILES = {
    "a tile a step": ("TILES=1",),
    "two tiles a step": ("TILES=2",),
    "three tiles a step, requested early": ("TILES=3", "STEPS=2"),
    "three blocks of one warp": ("BLOCKS=3", "WARPS=1", "TILES=2"),
    "blocks of three warps": ("WARPS=3", "STEPS=2"),
}
FAULTS = {
    ("flags", "NO_WAIT"): "assertion violated (seen",
    ("flags", "NO_SYNC"): "assertion violated (",
    ("flags", "EARLY"): "assertion violated (",
    ("flags", "RELAXED"): "assertion violated (seen",
    ("flags", "STALE"): "assertion violated (seen",
    ("flags", "ABSENT"): "invalid end state",
    ("flags", "LAST_ONE"): "invalid end state",
    ("cluster", "NO_WAIT"): "assertion violated (content",
    ("cluster", "NO_SYNC"): "assertion violated (ordered",
    ("cluster", "ONE_BUFFER"): "assertion violated (",
    ("cluster", "NOT_BEGUN"): "assertion violated ((begun",
    ("cluster", "PUBLISH_LAST"): "assertion violated ((begun",
    ("tiles", "NO_WAIT"): "assertion violated (released",
    ("tiles", "NO_SYNC"): "assertion violated (content",
    ("tiles", "NO_COPY_WAIT"): "assertion violated (content",
    ("tiles", "RELAXED"): "assertion violated (released",
    ("tiles", "TOO_EARLY"): "invalid end state",
    ("tiles", "ONE_BUFFER"): "assertion violated (",
    ("tiles", "SHORT"): "assertion violated (released",
}


def explore(model: str, folder: Path, *definitions: str, optimised: str = "-O1") -> str:
    """The output of spin's verifier after it has visited every state or found an error.

    The verifier has some 14,000 lines: -O2 takes longer than it saves.
    """
    for program in ("spin", "gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian's package of that name): no state was checked")
    switches = [f"-D{definition}" for definition in definitions]
    for command in (
        ["spin", "-a", *switches, str(MODELS / f"{model}.pml")],
        ["gcc", "-w", optimised, "-DSAFETY", "-o", "pan", "pan.c"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        ["./pan", "-m100000"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return done.stdout


CASES = [
    *((model, size, SIZES[size]) for model in ("flags", "cluster") for size in SIZES),
    *(("tiles", size, TILES[size]) for size in TILES),
]


@pytest.mark.parametrize(("model", "size", "definitions"), CASES, ids=lambda part: str(part)[:40])
def test_no_interleaving_is_wrong_or_deadlocks(
    model: str, size: str, definitions: tuple[str, ...], tmp_path: Path
) -> None:
    few_states = not {"WARPS=3", "TILES=2", "TILES=3"} & {*definitions}
    said = explore(model, tmp_path, *definitions, optimised="-O0" if few_states else "-O1")
    assert "errors: 0" in said, said
    assert "max search depth too small" not in said  # else the search was not exhaustive
    states = re.search(r"([\d.e+]+) states, stored", said)
    assert states is not None and float(states.group(1)) > 1000


@pytest.mark.parametrize(("model", "fault"), FAULTS)
def test_a_fault_is_found(model: str, fault: str, tmp_path: Path) -> None:
    tiles = ["TILES=3"] if fault == "ONE_BUFFER" and model == "tiles" else []
    said = explore(model, tmp_path, fault, *tiles, optimised="-O0")  # after a few states
    assert "errors: 1" in said and FAULTS[model, fault] in said, said
