"""The last stage of `make gpu-check`: suite=lstm on the GPU, cell by cell, until a deadline.

The cells run in a process of their own, as `python -m captioner.benchmarks.gpu_benchmark JOB OUT`.
It writes OUT after each. A cell that hangs or breaks the GPU's context ends that process; the stage
notes the cell and goes on with the next in a fresh one.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from captioner.benchmarks.gpu_stages import Checkout, Part
from captioner.benchmarks.lstm import measure, present_sides, suite_settings
from captioner.benchmarks.lstm_case import Cell, grid
from captioner.benchmarks.lstm_sides import BOTH, FUSED, PADDED, PEER
from captioner.benchmarks.processes import Finished, run_process
from captioner.benchmarks.record import SuiteResult, describe_machine, make_record
from captioner.files import read_json, write_json

BACKENDS = (PADDED, FUSED)
REPEATS, MIN_SECONDS = 5, 0.03
CELL_SECONDS = 90  # what takes longer hangs
GRACE = 25  # seconds past the deadline that the last cell may still take
BROKEN = 3  # exit status of a process whose GPU context is lost


def gpu_grid() -> list[Cell]:
    """Every cell, those first that say most where time runs out."""
    sizes = {"hidden_sizes": [512, 1024, 256], "batch_sizes": [64, 256, 16, 1024]}
    ragged = ["flickr8k"]
    return [
        *grid(lengths=ragged, dtypes=["bfloat16", "float32"], **sizes),
        *grid(
            lengths=["equal", "outlier"], dtypes=["bfloat16"], hidden_sizes=[512],
            batch_sizes=[64, 256],
        ),
        *grid(lengths=ragged, dtypes=["float16"], **sizes),
    ]  # fmt: skip


def run_benchmark_stage(
    checkout: Checkout,
    *,
    seconds: float,
    cells: Sequence[Cell] | None = None,
    device: str = "cuda",
    note: Callable[[Part], None] = lambda part: None,
) -> Part:
    """Measure as many cells as `seconds` allow; `note` is given the part after each of them."""
    cells = gpu_grid() if cells is None else list(cells)
    deadline = time.time() + seconds
    part: Part = {"status": "failed", "summary": "nothing was measured", "failed": {}}
    part["skipped"] = [str(cell) for cell in cells]
    done, empty = 0, 0
    while done < len(cells) and time.time() < deadline and empty < 2:
        job = {
            "cells": [dataclasses.astuple(cell) for cell in cells[done:]],
            "deadline": deadline, "device": device,
        }  # fmt: skip
        before = part

        def merge(found: dict[str, Any], before: Part = before, done: int = done) -> Part:
            return _merged(before, found, [str(cell) for cell in cells[done + found["done"] :]])

        finished, found = _run_cells(checkout, job, lambda new: note(_judged(merge(new))))
        part = merge(found)
        done += found["done"]
        if finished.code == 0:
            break
        empty = empty + 1 if not found["done"] else 0
        if found["running"] is not None:  # it took the process with it
            part["failed"][found["running"]] = f"{finished.ending}: {finished.output[-2000:]}"
            done += 1
            part["skipped"] = [str(cell) for cell in cells[done:]]
        elif finished.code != BROKEN:
            part["failed"]["the process"] = f"{finished.ending}: {finished.output[-2000:]}"
    return _judged(part)


def _run_cells(
    checkout: Checkout, job: dict[str, Any], note: Callable[[dict[str, Any]], None]
) -> tuple[Finished, dict[str, Any]]:
    """One process over the cells of `job`; `note` is given what it has written so far."""
    nothing: dict[str, Any] = {"done": 0, "running": None, "failed": {}, "record": None}
    with tempfile.TemporaryDirectory() as folder:
        asked, out = Path(folder) / "job.json", Path(folder) / "out.json"
        write_json(asked, job)
        noted = 0

        def look() -> None:
            nonlocal noted
            found = read_json(out) if out.is_file() else nothing
            if found["done"] > noted:
                noted = found["done"]
                note(found)

        finished = run_process(
            [checkout.python, "-m", "captioner.benchmarks.gpu_benchmark", str(asked), str(out)],
            folder=checkout.root, environment=checkout.environment, while_running=look,
            timeout=max(0.0, job["deadline"] - time.time()) + GRACE + 5,
        )  # fmt: skip
        return finished, read_json(out) if out.is_file() else nothing


def _merged(part: Part, found: dict[str, Any], skipped: list[str]) -> Part:
    """`part` with what a further process found."""
    merged = {**part, "failed": {**part["failed"], **found["failed"]}, "skipped": skipped}
    record, before = found["record"], part.get("record")
    if record is not None and before is not None:
        record = {
            **before,
            "figures": before["figures"] + record["figures"],
            "requirements": before["requirements"] + record["requirements"],
            "settings": {
                **before["settings"],
                "batches": before["settings"]["batches"] + record["settings"]["batches"],
            },
        }
    return {**merged, "record": record or before}


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
        (len(wrong), "differences too large"),
    ):
        summary += f", {count} {words}" if count else ""
    summary += "".join(f"; {name} is absent: {why}" for name, why in absent.items())
    ratios = [
        one["median"] for one in record["figures"]
        if (one["what"], one["side"]) == (f"{BOTH}, speed to {PEER}", FUSED)
    ]  # fmt: skip
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        summary += f"; {FUSED} is {mean:.2f} times as fast as packed nn.LSTM (geometric mean)"
    status = "failed" if part["failed"] or wrong or absent else "passed"
    return {**part, "status": status, "summary": summary}


def measure_cells(job: dict[str, Any], out: Path) -> int:
    """In the process of its own: measure the job's cells, writing `out` before and after each."""
    device = torch.device(job["device"])
    names, absent = present_sides(BACKENDS, device)
    result = SuiteResult(suite_settings(absent, seed=0, data_root=None), [], [])
    machine = describe_machine(device)
    found: dict[str, Any] = {"done": 0, "running": None, "failed": {}, "record": None}
    for cell in (Cell(*one) for one in job["cells"]):
        if time.time() > job["deadline"]:
            break
        found["running"] = str(cell)
        write_json(out, found)
        limit = min(CELL_SECONDS, job["deadline"] - time.time() + GRACE)
        faulthandler.dump_traceback_later(limit, exit=True)
        try:
            measured = measure(
                cell, names, repeats=REPEATS, device=device, seed=0, min_seconds=MIN_SECONDS
            )
        except Exception as error:
            found["failed"][str(cell)] = f"{type(error).__name__}: {error}"
        else:
            result.settings["batches"].append(measured.settings)
            result.figures.extend(measured.figures)
            result.requirements.extend(measured.requirements)
            found["record"] = make_record("lstm", result, machine=machine)
        faulthandler.cancel_dump_traceback_later()
        found.update(done=found["done"] + 1, running=None)
        write_json(out, found)
        if not _works(device):
            return BROKEN
    return 0


def _works(device: torch.device) -> bool:
    """Whether the device still computes: an illegal access loses a process its GPU for good."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2
    except RuntimeError:
        return False


if __name__ == "__main__":
    sys.exit(measure_cells(read_json(sys.argv[1]), Path(sys.argv[2])))
