"""The stage `benchmark` of `make gpu-check`: suite=lstm on the GPU, cell by cell, until a deadline.

A cell is a job of benchmarks/job_process.py: one that hangs or breaks the GPU's context is noted,
and the next is measured in a fresh process.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_stages import Checkout, Part
from benchmarks.job_process import Found, do_jobs, run_jobs
from benchmarks.lstm import measure, present_sides, suite_settings
from benchmarks.lstm_case import Cell, grid
from benchmarks.lstm_sides import BOTH, ON_CHIP, PADDED, PEER, STEPWISE
from benchmarks.record import SuiteResult, describe_machine, make_record, measured
from captioner.ops.algorithms import Algorithm

# As haste's published report: 64 sequences of equal length (its inputs are 128 wide, these as wide
# as the state).
HASTE = Cell("equal", "tf32", 512, 64)
MODULE = "benchmarks.gpu_benchmark"
BACKENDS = (PADDED, STEPWISE, *ON_CHIP)
REPEATS, MIN_SECONDS = 5, 0.03
CELL_SECONDS = 90.0  # what takes longer hangs


def gpu_grid() -> list[Cell]:
    """Every cell, those first that say most where time runs out."""
    sizes = {"hidden_sizes": [512, 1024, 256], "batch_sizes": [64, 256, 16, 1024]}
    ragged = ["flickr8k"]
    cells = [
        *grid(
            lengths=ragged, dtypes=["bfloat16"], hidden_sizes=[512], batch_sizes=[64, 128, 256]
        ),
        *grid(lengths=ragged, dtypes=["float16", "tf32"], hidden_sizes=[512], batch_sizes=[64]),
        *grid(lengths=ragged, dtypes=["bfloat16", "tf32"], **sizes),
        *grid(
            lengths=["equal", "outlier"], dtypes=["bfloat16"], hidden_sizes=[512],
            batch_sizes=[64, 256],
        ),
        HASTE,
        *grid(lengths=ragged, dtypes=["float16", "float32"], **sizes),
    ]  # fmt: skip
    return list(dict.fromkeys(cells))


def run_benchmark_stage(
    checkout: Checkout,
    *,
    seconds: float,
    cells: Sequence[Cell] | None = None,
    device: str = "cuda",
    note: Callable[[Part], None] = lambda part: None,
) -> Part:
    """Measure as many cells as `seconds` allow; `note` is given the part after each of them."""
    cells = gpu_grid() if cells is None else cells
    machine = describe_machine(torch.device(device))
    found = run_jobs(
        checkout, MODULE, {str(cell): dataclasses.asdict(cell) for cell in cells},
        device=device, deadline=time.time() + seconds, job_seconds=CELL_SECONDS,
        note=lambda so_far: note(_judged(_part(so_far, machine))),
    )  # fmt: skip
    return _judged(_part(found, machine))


def measure_cell(device: torch.device, **cell: Any) -> dict[str, Any]:
    """In the process of its own: a cell's figures, its batch, and the sides that cannot run."""
    names, absent = present_sides(BACKENDS, device)
    result = measure(
        Cell(**cell), names, repeats=REPEATS, device=device, seed=0, min_seconds=MIN_SECONDS
    )
    return {
        **measured(result.figures, result.requirements), "batch": result.settings,
        "absent": absent,
    }  # fmt: skip


def _part(found: Found, machine: dict[str, Any]) -> Part:
    """The stage's part of the record, but for its verdict; suite=lstm's record is in it."""
    part: Part = {"failed": found.failed, "skipped": found.skipped, "record": None}
    results = list(found.results.values())
    if not results:
        return part
    settings = suite_settings(results[-1]["absent"], seed=0, data_root=None)
    settings["batches"] = [one["batch"] for one in results]
    part["record"] = {
        **make_record("lstm", SuiteResult(settings, [], []), machine=machine),
        "figures": [figure for one in results for figure in one["figures"]],
        "requirements": [asked for one in results for asked in one["requirements"]],
    }
    part["paths"] = measured_paths(part["record"])
    return part


def measured_paths(record: dict[str, Any]) -> dict[str, Any]:
    """The record's times of captions as ops/algorithms.json wants them (see ops/algorithms.py)."""
    times: dict[tuple[str, int, int], dict[str, float]] = {}
    for one in record["figures"]:
        axes = one["axes"]
        wanted = (one["what"], one["unit"], axes["lengths"]) == (BOTH, "ms", "flickr8k")
        if wanted and one["side"] in Algorithm.__members__:
            # Paths on the chip are only taken in float32 where TF32 is allowed.
            dtype = {"tf32": "float32", "float32": "strict"}.get(axes["dtype"], axes["dtype"])
            cell = (dtype, axes["H"], axes["B"])
            times.setdefault(cell, {})[one["side"]] = one["median"]
    table: dict[str, list[dict[str, Any]]] = {}
    for (dtype, hidden, batch), by_path in times.items():
        if len(by_path) > 1:
            cell_sizes = {"hidden_size": hidden, "batch_size": batch}
            table.setdefault(dtype, []).append({**cell_sizes, "milliseconds": by_path})
    return {record["machine"]["device"]: table}


def _judged(part: Part) -> Part:
    """`part` with its status: failed where a cell is, results disagree, or nothing was measured."""
    record = part.get("record")
    if record is None:
        why = "; ".join(part["failed"].values()) or "no time was left"
        return {**part, "status": "failed", "summary": f"nothing was measured: {why[-300:]}"}
    wrong = [one for one in record["requirements"] if not one["met"]]
    absent = record["settings"]["skipped"]
    summary = f"{len(record['settings']['batches'])} cells measured"
    for count, words in (
        (len(part["failed"]), "failed"),
        (len(part["skipped"]), "left out for want of time"),
        (len(wrong), "requirements not met"),
    ):
        summary += f", {count} {words}" if count else ""
    summary += "".join(f"; {name} is absent: {why}" for name, why in absent.items())
    for name in (STEPWISE, *ON_CHIP):
        ratios = [
            one["median"] for one in record["figures"]
            if (one["what"], one["side"]) == (f"{BOTH}, speed to {PEER}", name)
        ]  # fmt: skip
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            summary += f"; {name} is {mean:.2f} times as fast as packed nn.LSTM (geometric mean)"
    status = "failed" if part["failed"] or wrong or absent else "passed"
    return {**part, "status": status, "summary": summary}


if __name__ == "__main__":
    sys.exit(do_jobs(measure_cell, Path(sys.argv[1]), Path(sys.argv[2])))
