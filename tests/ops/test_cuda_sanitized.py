"""The plain CUDA kernels under AddressSanitizer and UBSan, and the emulation that runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sanitized_programs import execute

if TYPE_CHECKING:
    from conftest import Compiler


pytestmark = pytest.mark.sanitized


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


def test_kernels_keep_to_their_buffers(sanitized: Path) -> None:
    status, said = execute(sanitized, schedule="random:5")
    assert (status, said) == (0, "all buffers kept to")
