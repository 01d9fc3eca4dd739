"""The stage `features` of `make gpu-check`: JPEG files to features, by Pillow and on the GPU.

It needs torchvision and Pillow, and is skipped where they are not. What it measures is in
benchmarks/reader_job.py.
"""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from benchmarks.gpu_stages import Checkout, Part
from benchmarks.job_process import Found, run_jobs
from benchmarks.record import format_figures

MODULE = "benchmarks.reader_job"
JOB = {"network": "resnet50", "pictures": 2048, "side": 448, "batch_size": 256}
FEATURES_SECONDS = 90.0


def run_features_stage(
    checkout: Checkout, *, seconds: float = FEATURES_SECONDS, device: str = "cuda", **job: Any
) -> Part:
    """Pictures a second of each reader; `job`: what is to be other than in JOB."""
    for package in ("torchvision", "PIL"):
        if importlib.util.find_spec(package) is None:
            return {"status": "skipped", "summary": f"{package} is not installed"}
    found = run_jobs(
        checkout, MODULE, {"features": {**JOB, **job}}, device=device,
        deadline=time.time() + seconds, job_seconds=seconds,
    )  # fmt: skip
    return _judged(found)


def _judged(found: Found) -> Part:
    if "features" not in found.results:
        why = "; ".join(found.failed.values()) or "no time was left"
        return {"status": "failed", "summary": why[-300:]}
    part: Part = found.results["features"]
    met = all(one["met"] for one in part["requirements"])
    rates = ", ".join(f"{one['side']} {one['median']:.0f}" for one in part["figures"])
    summary = f"{rates} pictures a second, {'with' if part['nvjpeg'] else 'without'} nvJPEG"
    summary += "" if met else "; the features are too far apart"
    return {"status": "passed" if met else "failed", "summary": summary, **part}


def format_features(part: Part) -> list[str]:
    """What the stage measured, for the terminal; nothing where it did not run."""
    return [*format_figures(part), ""] if part.get("figures") else []
