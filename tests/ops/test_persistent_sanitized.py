"""The persistent CUDA kernels under AddressSanitizer and UBSan, against the formulas in double."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sanitized_programs import TOLERANCE, bits, differences, execute

pytestmark = pytest.mark.sanitized
LAYOUTS = ["5", "1,1,1", "4,4,2,1", "20,17,9,9,3,1", "37,20,2"]
ALGORITHMS = pytest.mark.parametrize("algorithm", ["persistent", "untiled", "cluster"])


def worst(program: Path, *case: str) -> float:
    """The largest difference of a run that ends well."""
    status, said = execute(program, *case)
    assert status == 0, said
    return max(differences(said))


@ALGORITHMS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "hidden"), [("float", 20), ("bfloat16", 32), ("half", 72)])
def test_steps_in_one_launch_give_what_the_formulas_give(
    persistent: Path, kind: str, hidden: int, layout: str, algorithm: str
) -> None:
    assert worst(persistent, algorithm, kind, str(hidden), layout) < TOLERANCE[kind]


CAPACITIES = {"4,2,1": "12 6", "3,3,0,0": "6 5", "0,0": "3 2", "2,1,0": "40 2", "17,3": "20 20"}


@ALGORITHMS
@pytest.mark.parametrize("layout", CAPACITIES)
@pytest.mark.parametrize(("kind", "hidden"), [("float", 20), ("half", 72)])
def test_a_batch_may_fill_a_part_of_the_capacity(
    persistent: Path, kind: str, hidden: int, layout: str, algorithm: str
) -> None:
    case = (algorithm, kind, str(hidden), layout, *CAPACITIES[layout].split())
    assert worst(persistent, *case) < TOLERANCE[kind]


@pytest.mark.parametrize("capacity", ["6 4", "7 3"])
def test_a_batch_beyond_the_capacity_ends_the_launch(persistent: Path, capacity: str) -> None:
    status, said = execute(persistent, "persistent", "half", "72", "4,2,1", *capacity.split())
    assert status != 0 and "trapped at block" in said


@pytest.mark.parametrize("schedule", ["reversed", "eager", "random:1"])
def test_no_order_of_blocks_and_threads_matters_nor_the_algorithm(
    persistent: Path, schedule: str
) -> None:
    """Three blocks a group and two groups, which wait for one another in any order."""
    case = ("half", "136", "9,5,1")
    first = bits(persistent, "untiled", *case)
    for algorithm in ("untiled", "cluster"):
        assert bits(persistent, algorithm, *case, schedule=schedule) == first


@pytest.mark.parametrize("layout", ["9,5,1", "37,20,2"])
@pytest.mark.parametrize("schedule", ["reversed", "eager", "random:1"])
def test_no_order_of_blocks_and_threads_matters_to_tiles(
    persistent: Path, schedule: str, layout: str
) -> None:
    """Tiles of one group, five a step, and tiles of two groups, one a step."""
    case = ("persistent", "half", "72", layout)
    count = 3 if layout.startswith("37") else 8
    expected = bits(persistent, *case, multiprocessors=count)
    assert bits(persistent, *case, schedule=schedule, multiprocessors=count) == expected


@pytest.mark.parametrize("schedule", ["forward", "random:3"])
@pytest.mark.parametrize(("kind", "hidden"), [("float", 40), ("half", 136)])
def test_warp_groups_of_eight_columns_give_the_same(
    persistent: Path, kind: str, hidden: int, schedule: str
) -> None:
    case = (kind, str(hidden), "9,5,1")
    expected = bits(persistent, "untiled", *case)
    assert bits(persistent, "untiled8", *case, schedule=schedule) == expected


def partitions(program: Path) -> dict[tuple[str, str, int, int], tuple[bool, bool]]:
    """By algorithm, type, H and B, whether forward and backward fit."""
    status, said = execute(program, "partitions")
    assert status == 0
    pattern = r"(\w+) (\w+) (\d+) (\d+): (\d+) x \d+, (\d+) x"
    return {
        (algorithm, kind, int(hidden), int(batch)): (forward != "0", backward != "0")
        for algorithm, kind, hidden, batch, forward, backward in re.findall(pattern, said)
    }


def test_what_an_h100_and_an_a100_hold(persistent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "132")
    h100 = partitions(persistent)
    assert len(h100) == 2 * 2 * 113 * 5
    assert all(fits == (True, True) for key, fits in h100.items() if key[0] == "persistent")
    clusters = {key: fits for key, fits in h100.items() if key[0] == "cluster"}
    assert all(
        clusters["cluster", "bfloat16", hidden, 64] == (True, True) for hidden in (128, 256, 512)
    )
    assert clusters["cluster", "bfloat16", 1024, 64] == (False, False)  # 64 blocks a group
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "108")
    monkeypatch.setenv("CUDA_EMULATION_SHARED", "163")
    monkeypatch.setenv("CUDA_EMULATION_CAPABILITY", "8")
    a100 = partitions(persistent)
    assert not any(any(fits) for key, fits in a100.items() if key[0] == "cluster")
    missing = {key[1:3] for key, fits in a100.items() if key[0] == "persistent" and not all(fits)}
    assert missing == {("float", hidden) for hidden in range(872, 1025, 8)}


def test_what_a_device_cannot_hold_is_refused(persistent: Path) -> None:
    """Rows that are no multiple of 16 bytes; more blocks than co-resident; larger clusters."""
    for case in (
        ("persistent", "half", "33"),
        ("persistent", "half", "1024"),
        ("cluster", "half", "1024"),
    ):
        status, said = execute(persistent, *case, "2")
        assert (status, said.strip()) == (2, "does not fit")
