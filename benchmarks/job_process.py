"""Measurements in a process of their own, one after another, until a deadline.

A job that hangs, or loses the process its GPU, takes that process with it: it is noted, and the
jobs after it go on in a fresh one. What each found is in a file before the next begins.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_stages import Checkout
from benchmarks.processes import Finished, run_process
from captioner.files import read_json, write_json

BROKEN = 3  # exit status of a process whose GPU is lost to it
GRACE = 15.0  # seconds past the deadline that the last job may still take
Arguments = Mapping[str, Any]  # as JSON has it
Out = dict[str, Any]  # a process's file: results, failed, and the job that is running


@dataclass(frozen=True)
class Found:
    """By job: what it returned, or why it failed; and the jobs that were not done."""

    results: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def joined(self, other: Found) -> Found:
        """With what other jobs found."""
        return Found(
            {**self.results, **other.results},
            {**self.failed, **other.failed},
            [*self.skipped, *other.skipped],
        )


def run_jobs(
    checkout: Checkout,
    module: str,
    jobs: Mapping[str, Arguments],
    *,
    device: str,
    deadline: float,
    job_seconds: float,
    note: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Do `jobs` by `python -m module ASKED OUT`, which calls `do_jobs`; `note` after each of them.

    `deadline` is of time.time(): no job begins after it. A job ends after `job_seconds`.
    """
    found, idle = Found(skipped=list(jobs)), 0
    while found.skipped and time.time() < deadline and idle < 2:
        asked = {
            "jobs": {name: jobs[name] for name in found.skipped}, "device": device,
            "deadline": deadline, "job_seconds": job_seconds,
        }  # fmt: skip
        before = found

        def noted(out: Out, before: Found = before) -> None:
            note(_with(before, out))

        finished, out = _run(checkout, module, asked, noted)
        idle = 0 if out["results"] or out["failed"] or out["running"] else idle + 1
        why = f"{finished.ending}: {finished.output[-2000:]}"
        if out["running"] is not None:  # it took the process with it
            out["failed"][out["running"]] = why
        elif finished.code not in (0, BROKEN):
            out["failed"]["the process"] = why
        found = _with(before, out)
        note(found)
        if finished.code == 0:
            break
    return found


def _with(found: Found, out: Out) -> Found:
    """`found` with what a process has written."""
    results, failed = {**found.results, **out["results"]}, {**found.failed, **out["failed"]}
    return Found(results, failed, [x for x in found.skipped if x not in {*results, *failed}])


def _run(
    checkout: Checkout, module: str, asked: Mapping[str, Any], note: Callable[[Out], None]
) -> tuple[Finished, Out]:
    """One process, and what it has written; `note` is given that whenever a job is done."""
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "asked.json", Path(folder) / "out.json"
        write_json(question, asked)
        noted = 0

        def look() -> None:
            nonlocal noted
            out = _read(answer)
            if (done := len(out["results"]) + len(out["failed"])) > noted:
                noted = done
                note(out)

        finished = run_process(
            [checkout.python, "-m", module, str(question), str(answer)],
            folder=checkout.root, environment=checkout.environment, while_running=look,
            timeout=max(0.0, asked["deadline"] - time.time()) + GRACE + 5,
        )  # fmt: skip
        return finished, _read(answer)


def _read(answer: Path) -> Out:
    nothing: Out = {"results": {}, "failed": {}, "running": None}
    return read_json(answer) if answer.is_file() else nothing


def do_jobs(do: Callable[..., Any], question: Path, out: Path) -> int:
    """In the process of its own: `do(device=..., **arguments)` of each job; the exit status."""
    asked = read_json(question)
    device = torch.device(asked["device"])
    found: Out = {"results": {}, "failed": {}, "running": None}
    for name, arguments in asked["jobs"].items():
        if time.time() > asked["deadline"]:
            break
        write_json(out, {**found, "running": name})
        limit = min(asked["job_seconds"], asked["deadline"] - time.time() + GRACE)
        faulthandler.dump_traceback_later(limit, exit=True)
        try:
            found["results"][name] = do(device=device, **arguments)
        except Exception as error:
            found["failed"][name] = f"{type(error).__name__}: {error}"
        faulthandler.cancel_dump_traceback_later()
        write_json(out, found)
        if not _works(device):
            return BROKEN
    return 0


def process_age() -> float:
    """Seconds since this process began, as Linux knows it."""
    # Behind the name in parentheses, which may hold anything, field 22 of all counts as the 20th.
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - began / os.sysconf("SC_CLK_TCK")


def _works(device: torch.device) -> bool:
    """Whether the device still computes; what the job held of its memory is given back."""
    try:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return float(torch.ones(2, device=device).sum()) == 2
    except RuntimeError:
        return False
