"""The stage `epoch` of `make gpu-check`: whole passes over captions, eager and as one graph.

What is measured is in benchmarks/epoch_jobs.py; here stands which jobs there are, in which order
and for how long, and what the record says of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.epoch_passes import PLAIN
from benchmarks.gpu_stages import Checkout, Part
from benchmarks.job_process import Found, run_jobs
from benchmarks.record import format_figures, format_requirements

MODULE = "benchmarks.epoch_jobs"
CUDNN, OURS, OUR_LOOP = "graph torch", "graph persistent", "eager persistent"
FLICKR8K = {"images": 6000, "feature_dim": 1280}  # EfficientNet-lite's features
PASSES, DEV_IMAGES, MANY_STEPS = 15, 1000, 20_000
EPOCH_SECONDS = 240.0
JOB_SECONDS = 60.0  # what takes longer hangs
Jobs = dict[str, dict[str, Any]]


def timed_run() -> Jobs:
    """Fifteen passes, cold and warm: the first job of its process, and so the only one."""
    # "fused" is persistent within the graph, and in decoding whatever fits.
    return {"run": _job("run", 128, side="graph fused", passes=PASSES, dev_images=DEV_IMAGES)}


def epoch_jobs(folder: Path) -> Jobs:
    """Every other job, those first that say most where time runs out; pictures go to `folder`."""
    return {
        **_graphs("bfloat16", 128, 64),
        # What is compared is the graph: its LSTM is the eager side's own. Then with others' loop.
        "losses, tf32": _losses("tf32", OUR_LOOP, OURS),
        "losses, float32": _losses("float32", PLAIN, CUDNN),
        "memory": _job("memory", 64, side=OURS, steps=MANY_STEPS, looks=10),
        **_graphs("bfloat16", 256, 1024),
        "time line": _job("timeline", 128, side=OURS, folder=str(folder)),
        **{f"eager, B {batch}": _eager(batch) for batch in (128, 64, 256, 1024)},
        "losses, bfloat16": _losses("bfloat16", OUR_LOOP, OURS),
        "several": _job("several", 128, side=OURS, counts=[1, 2, 4, 8], seconds=2.0),
        "time line of cuDNN's": _job("timeline", 128, side=CUDNN, folder=str(folder)),
        **_graphs("tf32", 128, 64),
    }


def _job(what: str, batch_size: int, *, dtype: str = "bfloat16", **more: Any) -> dict[str, Any]:
    return {"what": what, "sizes": FLICKR8K, "batch_size": batch_size, "dtype": dtype, **more}


def _graphs(dtype: str, *batch_sizes: int) -> Jobs:
    both: dict[str, Any] = {"dtype": dtype, "sides": [CUDNN, OURS], "repeats": 5}
    return {f"graphs, {dtype}, B {batch}": _job("passes", batch, **both) for batch in batch_sizes}


def _eager(batch_size: int) -> dict[str, Any]:
    return _job("passes", batch_size, sides=[PLAIN, "eager torch", OUR_LOOP], repeats=2)


def _losses(dtype: str, *sides: str) -> dict[str, Any]:
    return _job("losses", 64, dtype=dtype, sides=list(sides), steps=100)


def run_epoch_stage(
    checkout: Checkout,
    groups: Sequence[Jobs],
    *,
    seconds: float,
    device: str = "cuda",
    note: Callable[[Part], None] = lambda part: None,
) -> Part:
    """As many jobs as `seconds` allow; each group begins in a process of its own."""
    deadline = time.time() + seconds
    whole = Found()
    for jobs in groups:
        before = whole

        def noted(found: Found, before: Found = before) -> None:
            note(_judged(before.joined(found)))

        found = run_jobs(
            checkout, MODULE, jobs, device=device, deadline=deadline, job_seconds=JOB_SECONDS,
            note=noted,
        )  # fmt: skip
        whole = before.joined(found)
    return _judged(whole)


def _judged(found: Found) -> Part:
    """The stage's part of the record: failed where a job is, or what was asked is not reached."""
    results = found.results
    requirements = [one for result in results.values() for one in result["requirements"]]
    missed = [one for one in requirements if not one["met"]]
    failed = dict(found.failed)
    for job, result in results.items():
        failed |= {f"{job}, {side}": why for side, why in result.get("absent", {}).items()}
    summary = f"{len(results)} jobs done"
    for names, words in ((failed, "failed"), (found.skipped, "left out for want of time")):
        summary += f", {len(names)} {words}" if names else ""
    summary += f"; {len(requirements) - len(missed)} of {len(requirements)} requirements met"
    tables = {"figures", "requirements", "absent"}
    details = {
        job: {key: result[key] for key in result.keys() - tables}
        for job, result in results.items()
        if result.keys() - tables
    }
    return {
        "status": "failed" if failed or missed or not results else "passed", "summary": summary,
        "settings": {"data": "lengths and words drawn as Flickr8k's", **FLICKR8K},
        "figures": [one for result in results.values() for one in result["figures"]],
        "requirements": requirements, "details": details, "failed": failed,
        "skipped": found.skipped,
    }  # fmt: skip


def format_epoch(part: Part) -> list[str]:
    """What the stage measured, for the terminal; nothing where it did not run."""
    lines: list[str] = []
    if part.get("figures"):
        lines += ["epoch:", *format_figures(part), ""]
    if part.get("requirements"):
        lines += [*format_requirements(part), ""]
    return lines + [
        f"FAILED {job}: {why.splitlines()[0]}" for job, why in part.get("failed", {}).items()
    ]
