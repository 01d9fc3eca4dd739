"""The stage `benchmark` of `make gpu-check`: suite=lstm, cell by cell, until a deadline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu_stages import Note, Part, judge, run_stage
from benchmarks.lstm import measure, present, suite_settings
from benchmarks.lstm_case import Cell, grid
from benchmarks.lstm_implementations import BASELINE, BOTH, PADDED, PERSISTENT, STEPWISE
from benchmarks.record import describe_machine
from benchmarks.settings import Run
from benchmarks.worker import JobResults
from captioner.ops.algorithms import Algorithm

# As haste's published report: 64 sequences of equal length (its inputs are 128 wide, these as wide
# as the state).
HASTE = Cell("equal", "tf32", 512, 64)
BACKENDS = (PADDED, STEPWISE, *PERSISTENT)
REPEATS, MIN_SECONDS = 5, 0.03
CELL_SECONDS = 90.0  # what takes longer hangs


def gpu_grid() -> list[Cell]:
    """Every cell, those first that say most where time runs out."""

    def cells(
        dtypes: list[str],
        *,
        lengths: Sequence[str] = ("flickr8k",),
        hidden: Sequence[int] = (512,),
        batches: Sequence[int] = (64, 256, 16, 1024),
    ) -> list[Cell]:
        return grid(lengths=lengths, dtypes=dtypes, hidden_sizes=hidden, batch_sizes=batches)

    every = (512, 1024, 256)
    found = [
        *cells(["bfloat16"], batches=(64, 128, 256)),
        *cells(["float16", "tf32"], batches=(64,)),
        *cells(["bfloat16", "tf32"], hidden=every),
        *cells(["bfloat16"], lengths=("equal", "outlier"), batches=(64, 256)),
        HASTE,
        *cells(["float16", "float32"], hidden=every),
    ]
    return list(dict.fromkeys(found))


def run_lstm_stage(
    *,
    seconds: float,
    cells: Sequence[Cell] | None = None,
    device: str = "cuda",
    note: Note = lambda part: None,
) -> Part:
    """Measure as many cells as `seconds` allow; `note` is given the part after each of them."""
    machine = describe_machine(torch.device(device))["device"]
    chosen = gpu_grid() if cells is None else cells
    return run_stage(
        measure_cell,
        {str(cell): dataclasses.asdict(cell) for cell in chosen},
        seconds=seconds,
        job_seconds=CELL_SECONDS,
        device=device,
        judged=lambda found: judge_cells(found, machine),
        note=note,
    )


def measure_cell(device: torch.device, **cell: Any) -> dict[str, Any]:
    """In the process of its own: a cell's figures, its batch, and what cannot run."""
    names, absent = present(BACKENDS, device)
    run = Run(repeats=REPEATS, device=device)
    result = measure(Cell(**cell), names, run, min_seconds=MIN_SECONDS)
    return {**result.as_json(), "batch": result.settings, "absent": absent}


def judge_cells(found: JobResults, machine: str) -> Part:
    """The stage's part of the record; with it the times from which an algorithm is chosen."""
    settings = suite_settings({}, Run(repeats=REPEATS, device=torch.device("cpu")))
    settings["batches"] = [one["batch"] for one in found.results.values()]
    part = judge(found, settings)
    part["details"] = {}
    for name in (STEPWISE, *PERSISTENT):
        ratios = [
            one["median"]
            for one in part["figures"]
            if (one["what"], one["implementation"]) == (f"{BOTH}, speed to {BASELINE}", name)
        ]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            words = f"{name} is {mean:.2f} times as fast as packed nn.LSTM (geometric mean)"
            part["summary"] += f"; {words}"
    return {**part, "algorithms": measured_algorithms(part["figures"], machine)}


def measured_algorithms(figures: Sequence[dict[str, Any]], machine: str) -> dict[str, Any]:
    """The times of captions as ops/algorithms.json wants them (see ops/algorithms.py)."""
    times: dict[tuple[str, int, int], dict[str, float]] = {}
    for one in figures:
        axes, name = one["axes"], one["implementation"]
        wanted = (one["what"], one["unit"], axes["lengths"]) == (BOTH, "ms", "flickr8k")
        if wanted and name in Algorithm.__members__:
            # Persistent algorithms are only taken in float32 where TF32 is allowed.
            dtype = {"tf32": "float32", "float32": "strict"}.get(axes["dtype"], axes["dtype"])
            times.setdefault((dtype, axes["H"], axes["B"]), {})[name] = one["median"]
    table: dict[str, list[dict[str, Any]]] = {}
    for (dtype, hidden, batch), by_algorithm in times.items():
        if len(by_algorithm) > 1:
            sizes = {"hidden_size": hidden, "batch_size": batch}
            table.setdefault(dtype, []).append({**sizes, "milliseconds": by_algorithm})
    return {machine: table}
