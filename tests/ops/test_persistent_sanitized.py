"""The persistent CUDA kernels under AddressSanitizer and UBSan, against the formulas in double."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from sanitized_programs import TOLERANCE, bits, differences, execute

from benchmarks.models_prediction import share_groups

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


# Capacities and models, multiprocessors: two models in one launch; three, which eight
# multiprocessors take in two launches; two groups a model.
MODELS = {
    "4,2,1": ("12 6 2", 8),
    "9,5,1": ("15 9 3", 8),
    "10,2": ("20 12 2", 16),
    "0,0": ("3 2 2", 8),
}


@ALGORITHMS
@pytest.mark.parametrize("layout", MODELS)
@pytest.mark.parametrize(("kind", "hidden"), [("float", 20), ("half", 72)])
def test_each_of_several_models_is_computed_with_its_own_weights(
    persistent: Path,
    kind: str,
    hidden: int,
    layout: str,
    algorithm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, multiprocessors = MODELS[layout]
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", str(multiprocessors))
    case = (algorithm, kind, str(hidden), layout, *sizes.split())
    assert worst(persistent, *case) < TOLERANCE[kind]


# Two models at once; two groups of each of three at once.
ORDERS = {"reversed": 20, "eager": 8, "random:1": 8}


@pytest.mark.parametrize("algorithm", ["persistent", "untiled"])
@pytest.mark.parametrize("schedule", ORDERS)
def test_no_order_matters_to_several_models_nor_how_groups_are_shared(
    persistent: Path, schedule: str, algorithm: str
) -> None:
    case = (algorithm, "half", "72", "9,1", "10", "9", "3")
    expected = bits(persistent, *case, multiprocessors=3)  # one model after another
    found = bits(persistent, *case, schedule=schedule, multiprocessors=ORDERS[schedule])
    assert found == expected


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


class Partition(NamedTuple):
    """What work_partition.cpp chose: models of a launch, groups of a model, blocks of a group."""

    models: int
    groups: int
    blocks: int


Key = tuple[str, str, int, int]  # algorithm, type, H, B


def work_partitions(program: Path, models: int = 1) -> dict[Key, tuple[Partition, Partition]]:
    """Forward and backward by algorithm, type, H and B; no groups where it does not fit."""
    status, said = execute(program, "partitions", str(models))
    assert status == 0
    three = r"(\d+) x (\d+) x (\d+)"
    found = re.findall(rf"(\w+) (\w+) (\d+) (\d+): {three}, {three} of", said)
    return {
        (algorithm, kind, int(hidden), int(batch)): (
            Partition(*map(int, numbers[:3])),
            Partition(*map(int, numbers[3:])),
        )
        for algorithm, kind, hidden, batch, *numbers in found
    }


def partitions(program: Path) -> dict[Key, tuple[bool, bool]]:
    """By algorithm, type, H and B, whether forward and backward fit."""
    found = work_partitions(program)
    return {key: (one.groups > 0, two.groups > 0) for key, (one, two) in found.items()}


def test_what_an_h100_and_an_a100_hold(persistent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "132")
    h100 = partitions(persistent)
    assert len(h100) == 2 * 2 * 113 * 6
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


@pytest.mark.parametrize("models", [2, 8, 9, 32])
def test_groups_are_shared_among_models(
    persistent: Path, models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 132 multiprocessors: whatever one model fits, K do, in as few launches as can be; every
    block of a launch is co-resident; no group is without a tile of sequences."""
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "132")
    alone = work_partitions(persistent)
    for key, both in work_partitions(persistent, models).items():
        for found, one in zip(both, alone[key], strict=True):
            assert (found.groups > 0) == (one.groups > 0), key
            if not found.groups:
                continue
            assert found.blocks == one.blocks and found.groups <= one.groups
            assert found.models * found.groups * found.blocks <= 132
            assert found.groups <= -(-key[3] // 8)
            resident = 132 // found.blocks
            # Where its memory holds what a group of all sequences needs.
            if key[0] == "persistent" and key[3] <= 256:
                launches = -(-models // resident)
                assert found.models == -(-models // launches)
                assert found.groups == min(resident // found.models, one.groups)


def test_how_many_models_an_h200_takes_at_once(
    persistent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/cuda.md and its prediction say: 16 blocks hold a model of H 512, 8 of H 256."""
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "132")
    expected = {
        (512, 1): (1, 8, 16),
        (512, 2): (2, 4, 16),
        (512, 8): (8, 1, 16),
        (512, 9): (5, 1, 16),
        (512, 32): (8, 1, 16),
        (256, 1): (1, 8, 8),
        (256, 2): (2, 8, 8),
        (256, 8): (8, 2, 8),
        (256, 32): (16, 1, 8),
    }
    for (hidden, models), partition in expected.items():
        found = work_partitions(persistent, models)
        assert found["persistent", "bfloat16", hidden, 64] == (partition, partition)
        for size, batch in ((128, 16), (256, 64), (512, 128), (1000, 64), (1024, 256)):
            launches, *shared = share_groups(models, size, batch)
            both = found["persistent", "bfloat16", size, batch]
            assert all([*one[:2]] == shared for one in both), (size, batch, models)
            assert launches == -(-models // shared[0])


def test_what_a_device_cannot_hold_is_refused(persistent: Path) -> None:
    """Rows that are no multiple of 16 bytes; more blocks than co-resident; larger clusters."""
    for case in (
        ("persistent", "half", "33"),
        ("persistent", "half", "1024"),
        ("cluster", "half", "1024"),
    ):
        status, said = execute(persistent, *case, "2")
        assert (status, said.strip()) == (2, "does not fit")
