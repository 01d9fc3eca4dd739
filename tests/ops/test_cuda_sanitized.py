"""The CUDA kernels under AddressSanitizer and UBSan, and the emulation that runs them there.

Faults are planted in copies of the kernels: a test that could not fail would show nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Compiler


pytestmark = pytest.mark.slow  # the programs have to be compiled


def execute(program: Path, *arguments: str, schedule: str = "forward") -> tuple[int, str]:
    """Exit status of a sanitized program and what it said, warnings about fibres excepted."""
    environment = {
        **os.environ,
        "CUDA_EMULATION_SCHEDULE": schedule,
        "ASAN_OPTIONS": "detect_leaks=0",  # abandoned fibres keep what they had
    }
    done = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=600
    )
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, "\n".join(x for x in lines if "makecontext/swapcontext" not in x)


@pytest.fixture(scope="session")
def self_test(compiler: Compiler) -> Path:
    return compiler.program("self_test", [compiler.emulation / "self_test.cpp"])


BACKWARDS = " ".join(map(str, range(63, -1, -1)))
CASES = {
    "reverse": (0, f"^{BACKWARDS} $"),
    "half_of_the_block": (
        1,
        r"half_of_the_block\(\): __syncthreads\(\) at self_test.cpp:\d+ in block \(0, 0, 0\): "
        r"32 of 64 threads came, thread \((32|63|\d+), 0, 0\) of block \(0, 0, 0\) has returned",
    ),
    "two_locations": (
        1,
        r"__syncthreads\(\) of block .* at self_test.cpp:\d+ for thread .* at self",
    ),
    "beyond_shared": (1, "heap-buffer-overflow"),
    "beyond_dynamic": (1, "heap-buffer-overflow"),
    "warp_sum": (0, "^" + "496 " * 32 + "1520 " * 32 + "$"),
    "part_of_a_warp": (0, "^5160 6160 7160 7160 $"),  # 160: lanes 5 and 7
    "lane_left_behind": (1, r"31 of 32 threads came, thread \(5, 0, 0\) .* has returned"),
    "not_in_its_mask": (1, r"lane \d+ is not in its own mask at self_test.cpp"),
    "count_up": (0, "^192 $"),
    "meet": (0, "^6 6 6 6 6 6 $"),
    "meet_alone": (1, "a grid's barrier needs a cooperative launch"),
    "meet_by_flag": (0, "^7 $"),
    "spin": (1, "all threads that are left wait in a loop"),
    "send_to_next": (0, "^" + "1 " * 4 + "0 " * 4 + "3 " * 4 + "2 " * 4 + "$"),
    "leave_early": (1, r"the shared memory of block \(1, 0, 0\), which has returned, at "),
    "beyond_the_cluster": (1, "the cluster has no block 2 at "),
    "some_do_not_arrive": (1, "all threads that are left wait in a loop"),
    "arrive_twice": (1, "a thread arrives twice at a cluster's barrier at "),
    "no_cluster": (1, "a cluster's barrier needs a launch of clusters"),
    "part_of_a_cluster": (0, "^refused$"),
    "trapped": (1, r"thread \(3, 0, 0\) of block \(\d, 0, 0\) trapped at self_test.cpp"),
    "too_many_threads": (0, "^refused$"),
}


@pytest.mark.parametrize("schedule", ["forward", "reversed", "eager", "random:3"])
@pytest.mark.parametrize("case", CASES)
def test_the_emulation_runs_and_refuses_as_it_should(
    self_test: Path, case: str, schedule: str
) -> None:
    status, said = execute(self_test, case, schedule=schedule)
    expected, pattern = CASES[case]
    assert (status, bool(re.search(pattern, said))) == (expected, True), said


@pytest.mark.parametrize("schedule", ["forward", "reversed"])
def test_a_missing_barrier_shows_under_any_schedule(self_test: Path, schedule: str) -> None:
    _, said = execute(self_test, "reverse_without_barrier", schedule=schedule)
    assert BACKWARDS not in said and "-1" in said


@pytest.mark.parametrize("schedule", ["forward", "reversed"])
def test_a_missing_cluster_barrier_shows_under_any_schedule(self_test: Path, schedule: str) -> None:
    _, right = execute(self_test, "send_to_next", schedule=schedule)
    _, said = execute(self_test, "send_to_next_without_barrier", schedule=schedule)
    assert right.startswith("1 1 1 1 0 0 0 0 3") and said != right


def plain_sources(compiler: Compiler) -> list[Path]:
    """sanitized.cpp and the kernels that it launches."""
    kernels = [x for x in compiler.kernels if x.stem in ("recurrence", "segment_sum")]
    return [compiler.emulation / "sanitized.cpp", *kernels]


@pytest.fixture(scope="session")
def sanitized(compiler: Compiler) -> Path:
    return compiler.program("sanitized", plain_sources(compiler))


def test_kernels_keep_to_their_buffers(sanitized: Path) -> None:
    status, said = execute(sanitized, schedule="random:5")
    assert (status, said) == (0, "all buffers kept to")


FAULTS = {
    "cells one unit too far": (
        "recurrence",
        "store(step.cells + row * hidden + unit, c)",
        "store(step.cells + row * hidden + unit + 1, c)",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "gradient of a sequence that ended": (
        "recurrence",
        "continues = row < step.continuing",
        "continues = row <= step.continuing",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "no end for the longest of those that end": (
        "recurrence",
        "if (row >= step.continuing)",
        "if (row > step.continuing)",
        "wrong: hy",
    ),
    "vectors where none may start": (
        "recurrence",
        "vectors = aligned &&",
        "vectors = (aligned || true) &&",
        "runtime error: .* misaligned address",
    ),
    "one start too many": (
        "segment_sum",
        "if (segment > segments) return",
        "if (segment > segments + 1) return",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "no barrier before the parts are read": (
        "segment_sum",
        "__syncthreads();",
        "",
        "wrong: a segment's sum",
    ),
    "a barrier that not all reach": (
        "segment_sum",
        "__syncthreads();",
        "if (column < columns) __syncthreads();",
        r"segment_sums<.*__syncthreads\(\) at segment_sum.*cu:\d+ .* threads came",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(compiler: Compiler, fault: str) -> None:
    stem, right, wrong, message = FAULTS[fault]
    sources = plain_sources(compiler)
    (original,) = (source for source in sources if source.stem == stem)
    text = original.read_text()
    assert text.count(right) == 1
    text = text.replace(right, wrong).replace('"../', f'"{original.parents[1]}/')
    faulty = compiler.folder / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.cu"
    faulty.write_text(text)
    sources.remove(original)
    status, said = execute(compiler.program(f"{faulty.stem}.out", sources, faulty=[faulty]))
    assert status != 0 and re.search(message, said), said


# -- the persistent kernels -----------------------------------------------------------------------

# Of 1 + |expected|. tf32 has ten bits of mantissa, as half has, bfloat16 seven.
TOLERANCE = {"float": 2e-3, "half": 2e-3, "bfloat16": 1e-2}
PERSISTENT_LAYOUTS = ["5", "1,1,1", "4,4,2,1", "20,17,9,9,3,1", "37,20,2"]
ALGORITHMS = pytest.mark.parametrize("algorithm", ["persistent", "untiled", "cluster"])
DIRECTIONS = ("forward", "backward")
SOURCES = [
    *(f"{kernel}_{direction}.cu" for kernel in ("persistent", "tiled") for direction in DIRECTIONS),
    "work_partition.cpp",
]


def persistent_sources(compiler: Compiler) -> list[Path]:
    cuda = compiler.kernels[0].parent
    return [*(cuda / name for name in SOURCES), compiler.emulation / "persistent.cpp"]


@pytest.fixture(scope="session")
def persistent(compiler: Compiler) -> Path:
    return compiler.program("persistent", persistent_sources(compiler))


def differences(program: Path, *case: str, schedule: str = "forward") -> list[float]:
    status, said = execute(program, *case, schedule=schedule)
    assert status == 0, said
    return [float(x) for x in re.findall(r"(?:forward|backward) (\S+)", said)]


def bits(program: Path, *case: str, schedule: str = "forward") -> str:
    """A hash of all results of forward and backward."""
    status, said = execute(program, *case, schedule=schedule)
    assert status == 0, said
    return re.findall(r"bits (\w+)", said)[0]


@ALGORITHMS
@pytest.mark.parametrize("layout", PERSISTENT_LAYOUTS)
@pytest.mark.parametrize(("kind", "hidden"), [("float", 20), ("bfloat16", 32), ("half", 72)])
def test_steps_in_one_launch_give_what_the_formulas_give(
    persistent: Path, kind: str, hidden: int, layout: str, algorithm: str
) -> None:
    found = differences(persistent, algorithm, kind, str(hidden), layout)
    assert max(found) < TOLERANCE[kind], found


CAPACITIES = {"4,2,1": "12 6", "3,3,0,0": "6 5", "0,0": "3 2", "2,1,0": "40 2", "17,3": "20 20"}


@ALGORITHMS
@pytest.mark.parametrize("layout", CAPACITIES)
@pytest.mark.parametrize(("kind", "hidden"), [("float", 20), ("half", 72)])
def test_a_batch_may_fill_a_part_of_the_capacity(
    persistent: Path, kind: str, hidden: int, layout: str, algorithm: str
) -> None:
    case = (algorithm, kind, str(hidden), layout, *CAPACITIES[layout].split())
    assert max(differences(persistent, *case)) < TOLERANCE[kind]


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
    persistent: Path, schedule: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of one group, five a step, and tiles of two groups, one a step."""
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "3" if layout.startswith("37") else "8")
    case = ("persistent", "half", "72", layout)
    assert bits(persistent, *case, schedule=schedule) == bits(persistent, *case)


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


# File, the right text, the faulty text, the algorithm, and the case that shows it.
PERSISTENT_FAULTS = {
    "forward does not wait for the previous step": (
        "persistent_forward.cu",
        "if (row0 == 0 && t > 0) exchange.wait();",
        "",
        ("untiled", "9,5,1"),
    ),
    "backward does not wait": (
        "persistent_backward.cu",
        "if (row0 == 0 && rows_after > 0) exchange.wait();",
        "",
        ("untiled", "9,5,1"),
    ),
    "a flag before all of the block have stored": (
        "exchange.h",
        "++steps_;\n    __syncthreads();",
        "++steps_;",
        ("untiled", "9,5,1"),
    ),
    "a flag that is never raised": (
        "exchange.h",
        "store_release(flags_ + block_rank_, steps_)",
        "store_release(flags_ + block_rank_, steps_ - 1)",
        ("untiled", "9,5,1"),
    ),
    "no wait for the cluster": (
        "exchange.h",
        "void wait() { cluster_wait(); }",
        "void wait() {}",
        ("cluster", "9,5,1"),
    ),
    "neither arrival nor wait": (
        "exchange.h",
        "cluster_arrive();\n    read_buffer_ = write_buffer_;",
        "read_buffer_ = write_buffer_;",
        ("cluster", "9,5,1"),
    ),
    "one buffer for all steps": (
        "exchange.h",
        "write_buffer_ += second_ ? -buffer_stride_ : buffer_stride_;",
        "",
        ("cluster", "9,5,1"),
    ),
    "published before all of the block have staged": (
        "exchange.h",
        "constexpr int kPerLane = Numbers<Scalar>::kPerLane;\n    __syncthreads();",
        "constexpr int kPerLane = Numbers<Scalar>::kPerLane;",
        ("cluster", "9,5,1"),
    ),
    "one block is left out": (
        "exchange.h",
        "for (int other = 1; other < blocks_; ++other)",
        "for (int other = 1; other + 1 < blocks_; ++other)",
        ("cluster", "9,5,1"),
    ),
    "padding rows are not zeroed": (
        "persistent_forward.cu",
        "params.output[k] = Scalar(0.0f);",
        "(void)k;",
        ("untiled", "4,2,1 12 6"),
    ),
    "no gradient for sequences without a step": (
        "persistent_backward.cu",
        "params.grad_cx[k] = params.grad_cy[k];",
        "",
        ("untiled", "4,2,1 12 6"),
    ),
    "a row too many": (
        "block.h",
        "sequences - group + partition.groups - 1",
        "sequences - group + partition.groups",
        ("untiled", "9,5,1"),
    ),
    "partial sums are read before they are written": (
        "block.h",
        "    gemm(row0);\n    __syncthreads();",
        "    gemm(row0);",
        ("untiled", "9,5,1"),
    ),
    "partial sums are overwritten before they are read": (
        "block.h",
        "if (row0 + kRows < rows) __syncthreads();",
        "",
        ("untiled", "37,20,2"),
    ),
    "forward tiles do not wait for what they depend on": (
        "tiled_forward.cu",
        "wait_for(counters + column / static_cast<int>(kUnits * sizeof(Scalar)), count);",
        "(void)column, (void)count;",
        ("persistent", "9,5,1"),
    ),
    "backward tiles do not wait": (
        "tiled_backward.cu",
        "      wait_for(counters + column % gate_bytes",
        "      if (column < 0) wait_for(counters + column % gate_bytes",
        ("persistent", "9,5,1"),
    ),
    "the count of one tile less": (
        "tiled_forward.cu",
        "Row::kWarpGroups * (cursor.dependency() + 1)",
        "Row::kWarpGroups * cursor.dependency()",
        ("persistent", "9,5,1"),
    ),
    "copies are not waited for": (
        "tiled_forward.cu",
        "    copy_async_wait();\n",
        "",
        ("persistent", "9,5,1"),
    ),
    "no barrier between copies and products": (
        "tiled_forward.cu",
        "    copy_async_wait();\n    __syncthreads();",
        "    copy_async_wait();",
        ("persistent", "9,5,1"),
    ),
    "a warp publishes before all of its lanes have stored": (
        "tiled.h",
        "  __syncwarp();\n",
        "",
        ("persistent", "9,5,1"),
    ),
    "a tile is requested before its dependency is computed": (
        "tiled_forward.cu",
        "next.dependency() <= now.index - 2",
        "next.dependency() <= now.index",
        ("persistent", "9,5,1"),
    ),
    "partial sums of tiles are read before they are written": (
        "tiled_backward.cu",
        "    __syncthreads();\n\n    if (threadIdx.x < kCells)",
        "\n    if (threadIdx.x < kCells)",
        ("persistent", "9,5,1"),
    ),
    "a buffer is overwritten while it is read": (
        "tiled.h",
        "static constexpr int kTileBytes = kTile * kStride;",
        "static constexpr int kTileBytes = 0;",
        ("persistent", "37,20,2"),
    ),
    "padding is not zeroed": (
        "tiled.h",
        "= Words{};",
        "= Words{0x7fff7fffu, 0, 0, 0};",
        ("persistent", "9,5,1"),
    ),
}


def copy_with_fault(compiler: Compiler, name: str, right: str, wrong: str) -> list[Path]:
    """Changed copies of the sources that include the file `name`, or of itself; of half alone."""
    cuda = compiler.kernels[0].parent
    key = hashlib.sha256(f"{name} {right} {wrong}".encode()).hexdigest()[:12]
    folder = compiler.folder / f"faulty-{key}"
    folder.mkdir(exist_ok=True)
    assert (cuda / name).read_text().count(right) == 1
    for file in (*cuda.glob("*.h"), *(cuda / other for other in SOURCES)):
        text = file.read_text().replace('"../', f'"{cuda.parent}/')
        if file.name == name:
            text = text.replace(right, wrong)
        # Other types would be compiled in vain; objects are known by their text.
        text = re.sub(
            r"^template cudaError_t \w+\(const \w+<[^>]*(float|16)>[^;]*;", "", text, flags=re.M
        )
        (folder / file.name).write_text(f"{text}// {key}\n")
    return [folder / source for source in SOURCES if name in included(cuda, source)]


def included(folder: Path, name: str) -> set[str]:
    """A source's own name and those of the headers of its folder that it includes in the end."""
    found, left = set(), [name]
    while left:
        one = left.pop()
        found.add(one)
        named = re.findall(r'^#include "([^"/]+)"', (folder / one).read_text(), re.M)
        left += [x for x in named if x not in found and (folder / x).exists()]
    return found


@pytest.mark.parametrize("fault", PERSISTENT_FAULTS)
def test_planted_faults_in_the_persistent_kernels_are_caught(
    compiler: Compiler, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a difference, the emulation or a sanitizer, in one of a few orders of threads."""
    name, right, wrong, (algorithm, layout) = PERSISTENT_FAULTS[fault]
    faulty = copy_with_fault(compiler, name, right, wrong)
    program = compiler.program(
        f"{faulty[0].parent.name}.out", persistent_sources(compiler), faulty=faulty
    )
    # For many rows a group, only one group: of two blocks, or of three by tiles.
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "3" if layout.startswith("37") else "8")

    def is_caught(schedule: str) -> bool:
        status, said = execute(program, algorithm, "half", "72", *layout.split(), schedule=schedule)
        apart = re.findall(r"(?:forward|backward) (\S+)", said)
        return status != 0 or not all(float(x) < TOLERANCE["half"] for x in apart)

    assert any(map(is_caught, ["eager", "random:1", "reversed", "forward", "random:2"]))
