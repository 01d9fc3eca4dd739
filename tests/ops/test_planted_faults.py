"""Faults planted in the CUDA kernels: the sanitized programs must catch every one of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sanitized_programs import (
    TOLERANCE,
    Fault,
    bits,
    differences,
    execute,
    faulty_program,
    persistent_sources,
    plain_sources,
)

if TYPE_CHECKING:
    from conftest import Compiler

pytestmark = pytest.mark.sanitized

# -- the plain kernels ----------------------------------------------------------------------------

OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
PLAIN_FAULTS = {
    "cells one unit too far": (
        Fault(
            "recurrence.cu",
            "store(step.cells + row * hidden + unit, c)",
            "store(step.cells + row * hidden + unit + (FAULT ? 1 : 0), c)",
        ),
        OVERFLOW,
    ),
    "gradient of a sequence that ended": (
        Fault(
            "recurrence.cu",
            "continues = row < step.continuing",
            "continues = row < step.continuing + (FAULT ? 1 : 0)",
        ),
        OVERFLOW,
    ),
    "no end for the longest of those that end": (
        Fault(
            "recurrence.cu",
            "if (row >= step.continuing)",
            "if (row >= step.continuing + (FAULT ? 1 : 0))",
        ),
        "wrong: hy",
    ),
    "vectors where none may start": (
        Fault("recurrence.cu", "vectors = aligned &&", "vectors = (aligned || FAULT) &&"),
        "runtime error: .* misaligned address",
    ),
    "one start too many": (
        Fault(
            "segment_sum.cu",
            "if (segment > segments) return",
            "if (segment > segments + (FAULT ? 1 : 0)) return",
        ),
        OVERFLOW,
    ),
    "no barrier before the parts are read": (
        Fault("segment_sum.cu", "__syncthreads();", "if (!FAULT) __syncthreads();"),
        "wrong: a segment's sum",
    ),
    "a barrier that not all reach": (
        Fault(
            "segment_sum.cu",
            "parts[own].at[k] = sum.at[k];",
            "parts[own].at[k] = sum.at[k];\n  if (FAULT && column >= columns) return;",
        ),
        r"segment_sums<.*__syncthreads\(\) at segment_sum.cu:\d+ .* threads came",
    ),
}
NUMBERS = {fault: number for number, fault in enumerate(PLAIN_FAULTS, 1)}


@pytest.fixture(scope="session")
def plain_with_faults(compiler: Compiler) -> Path:
    faults = [fault for fault, _ in PLAIN_FAULTS.values()]
    return faulty_program(compiler, plain_sources(compiler), faults)


def test_without_a_fault_that_program_passes(plain_with_faults: Path) -> None:
    assert execute(plain_with_faults) == (0, "all buffers kept to")


@pytest.mark.parametrize("fault", PLAIN_FAULTS)
def test_planted_faults_are_caught(plain_with_faults: Path, fault: str) -> None:
    status, said = execute(plain_with_faults, fault=NUMBERS[fault])
    assert status != 0 and re.search(PLAIN_FAULTS[fault][1], said), said


# -- the persistent kernels -----------------------------------------------------------------------

# Algorithm, batch_sizes and capacities of a run of half and H = 72.
UNTILED, CLUSTER, TILES = (("untiled", "9,5,1"), ("cluster", "9,5,1"), ("persistent", "9,5,1"))
PADDED, UNTILED_ROWS = ("untiled", "4,2,1 12 6"), ("untiled", "37,20,2")
TILED_ROWS = ("persistent", "37,20,2")
Case = tuple[str, str]
# A fault and its cases, in each of which it must be caught.
PERSISTENT_FAULTS: dict[str, tuple[Any, ...]] = {
    "forward does not wait for the previous step": (
        Fault(
            "persistent_forward.cu",
            "if (row0 == 0 && t > 0) exchange.wait();",
            "if (row0 == 0 && t > 0 && !FAULT) exchange.wait();",
        ),
        UNTILED,
    ),
    "backward does not wait": (
        Fault(
            "persistent_backward.cu",
            "if (row0 == 0 && rows_after > 0) exchange.wait();",
            "if (row0 == 0 && rows_after > 0 && !FAULT) exchange.wait();",
        ),
        UNTILED,
    ),
    "a flag before all of the block have stored": (
        Fault(
            "exchange.h",
            "++steps_;\n    __syncthreads();",
            "++steps_;\n    if (!FAULT) __syncthreads();",
        ),
        UNTILED,
    ),
    "a flag that is never raised": (
        Fault(
            "exchange.h",
            "store_release(flags_ + block_rank_, steps_)",
            "store_release(flags_ + block_rank_, steps_ - (FAULT ? 1 : 0))",
        ),
        UNTILED,
    ),
    "no wait for the cluster": (
        Fault("exchange.h", "{ cluster_wait(); }", "{ if (!FAULT) cluster_wait(); }"),
        CLUSTER,
    ),
    "neither arrival nor wait": (
        Fault(
            "exchange.h",
            "cluster_arrive();\n    read_buffer_ = write_buffer_;",
            "if (!FAULT) cluster_arrive();\n    read_buffer_ = write_buffer_;",
        ),
        CLUSTER,
    ),
    "one buffer for all steps": (
        Fault(
            "exchange.h",
            "write_buffer_ += second_ ? -buffer_stride_ : buffer_stride_;",
            "if (!FAULT) write_buffer_ += second_ ? -buffer_stride_ : buffer_stride_;",
        ),
        CLUSTER,
    ),
    "published before all of the block have staged": (
        Fault(
            "exchange.h",
            "constexpr int kPerLane = Numbers<Scalar>::kPerLane;\n    __syncthreads();",
            "constexpr int kPerLane = Numbers<Scalar>::kPerLane;\n    if (!FAULT) __syncthreads();",
        ),
        CLUSTER,
    ),
    "one block is left out": (
        Fault(
            "exchange.h",
            "for (int other = 1; other < blocks_; ++other)",
            "for (int other = 1; other + (FAULT ? 1 : 0) < blocks_; ++other)",
        ),
        CLUSTER,
    ),
    "padding rows are not zeroed": (
        Fault(
            "block.h",
            "params.output[begin.token * hidden + k] = Scalar(0.0f);",
            "if (!FAULT) params.output[begin.token * hidden + k] = Scalar(0.0f);",
        ),
        PADDED,
    ),
    "no gradient for sequences without a step": (
        Fault(
            "block.h",
            "params.grad_cx[at] = params.grad_cy[at];",
            "if (!FAULT) params.grad_cx[at] = params.grad_cy[at];",
        ),
        PADDED,
    ),
    "a row too many": (
        Fault(
            "block.h",
            "sequences - group + partition.groups - 1",
            "sequences - group + partition.groups - (FAULT ? 0 : 1)",
        ),
        UNTILED,
    ),
    "partial sums are read before they are written": (
        Fault(
            "block.h",
            "    gemm(row0);\n    __syncthreads();",
            "    gemm(row0);\n    if (!FAULT) __syncthreads();",
        ),
        UNTILED,
    ),
    "partial sums are overwritten before they are read": (
        Fault(
            "block.h",
            "if (row0 + kRows < rows) __syncthreads();",
            "if (row0 + kRows < rows && !FAULT) __syncthreads();",
        ),
        UNTILED_ROWS,
    ),
    "forward tiles do not wait for what they depend on": (
        Fault(
            "tiled_forward.cu",
            "        wait_for(counters + column / static_cast",
            "        if (!FAULT) wait_for(counters + column / static_cast",
        ),
        TILES,
    ),
    "backward tiles do not wait": (
        Fault(
            "tiled_backward.cu",
            "      wait_for(counters + column % gate_bytes",
            "      if (!FAULT) wait_for(counters + column % gate_bytes",
        ),
        TILES,
    ),
    "the count of one tile less": (
        Fault(
            "tiled_forward.cu",
            "Row::kWarpGroups * (cursor.dependency() + 1)",
            "Row::kWarpGroups * (cursor.dependency() + (FAULT ? 0 : 1))",
        ),
        TILES,
    ),
    "copies are not waited for": (
        Fault(
            "tiled_forward.cu", "    copy_async_wait();\n", "    if (!FAULT) copy_async_wait();\n"
        ),
        TILES,
    ),
    "no barrier between copies and products": (
        Fault(
            "tiled_forward.cu",
            "    __syncthreads();\n    const bool early",
            "    if (!FAULT) __syncthreads();\n    const bool early",
        ),
        TILES,
    ),
    "a warp publishes before all of its lanes have stored": (
        Fault("tiled.h", "  __syncwarp();\n", "  if (!FAULT) __syncwarp();\n"),
        TILES,
    ),
    "a tile is requested before its dependency is computed": (
        Fault(
            "tiled_forward.cu",
            "next.dependency() <= now.index - 2",
            "next.dependency() <= now.index - (FAULT ? 0 : 2)",
        ),
        TILES,
    ),
    "partial sums of tiles are read before they are written": (
        Fault(
            "tiled_backward.cu",
            "    __syncthreads();\n\n    if (threadIdx.x < kCells)",
            "    if (!FAULT) __syncthreads();\n\n    if (threadIdx.x < kCells)",
        ),
        TILES,
    ),
    "a buffer is overwritten while it is read": (
        Fault(
            "tiled_forward.cu",
            ".index % 2 * Row::kTileBytes",
            ".index % (FAULT ? 1 : 2) * Row::kTileBytes",
            places=2,
        ),
        TILED_ROWS,
    ),
    "padding is not zeroed": (
        Fault("tiled.h", "= Words{};", "= FAULT ? Words{0x7fff7fffu, 0, 0, 0} : Words{};"),
        TILES,
    ),
}
# Groups of one model read or write what is another's, in kernels by steps and by tiles.
MODEL_FAULTS = {
    "its neighbour's weights": ("gate(model * 4", "gate((FAULT ? model / 2 * 2 : model) * 4"),
    "its neighbour's tokens": ("token(model *", "token((FAULT ? model / 2 * 2 : model) *"),
    "its neighbour's states": ("sequence(model *", "sequence((FAULT ? model / 2 * 2 : model) *"),
    "its neighbour's cells": ("cells(token *", "cells((FAULT ? 0 : token) *"),
    "its neighbour's flags": (
        "(model * partition.groups + group) * partition.blocks",
        "((FAULT ? 0 : model) * partition.groups + group) * partition.blocks",
    ),
}
MODELS = (("untiled", "9,5,1 15 9 3"), ("persistent", "9,5,1 15 9 3"))
PERSISTENT_FAULTS |= {
    name: (Fault("block.h", *texts), *MODELS) for name, texts in MODEL_FAULTS.items()
}
# By tiles eight multiprocessors take three models in two launches.
PERSISTENT_FAULTS["the same models in every launch"] = (
    Fault("block.h", "model(params.first_model +", "model((FAULT ? 0 : params.first_model) +"),
    MODELS[1],
)
PERSISTENT_NUMBERS = {fault: number for number, fault in enumerate(PERSISTENT_FAULTS, 1)}
SCHEDULES = ["eager", "random:1", "reversed", "forward", "random:2"]


@pytest.fixture(scope="session")
def persistent_with_faults(compiler: Compiler) -> Path:
    faults = [fault for fault, *_ in PERSISTENT_FAULTS.values()]
    others = r"^template cudaError_t \w+\(const \w+<[^>]*(float|16)>[^;]*;"
    return faulty_program(compiler, persistent_sources(compiler), faults, others=others)


def arguments(case: Case) -> list[str]:
    algorithm, layout = case
    return [algorithm, "half", "72", *layout.split()]


def multiprocessors(case: Case) -> int:
    """For many rows a group, only one group: of two blocks, or of three by tiles."""
    return 3 if case[1].startswith("37") else 8


@pytest.mark.parametrize(
    "case", sorted({case for _, *cases in PERSISTENT_FAULTS.values() for case in cases})
)
def test_without_a_fault_that_program_gives_the_same_bits(
    persistent: Path, persistent_with_faults: Path, case: tuple[str, str]
) -> None:
    words, count = arguments(case), multiprocessors(case)
    expected = bits(persistent, *words, multiprocessors=count)
    found = bits(persistent_with_faults, *words, schedule=SCHEDULES[0], multiprocessors=count)
    assert found == expected


@pytest.mark.parametrize("fault", PERSISTENT_FAULTS)
def test_planted_faults_in_the_persistent_kernels_are_caught(
    persistent_with_faults: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a difference, the emulation or a sanitizer, in one of a few orders of threads."""
    number = PERSISTENT_NUMBERS[fault]
    for case in PERSISTENT_FAULTS[fault][1:]:
        words = arguments(case)
        monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", str(multiprocessors(case)))

        def is_caught(schedule: str, words: list[str] = words) -> bool:
            status, said = execute(persistent_with_faults, *words, schedule=schedule, fault=number)
            return status != 0 or not all(x < TOLERANCE["half"] for x in differences(said))

        assert any(map(is_caught, SCHEDULES)), case
