"""The stages `benchmark` and `features` of `make gpu-check`, and how a stage of jobs is judged.

A job is a function that takes plain values and returns what JSON can hold: `figures` and
`requirements` as a record has them, and what else it found. Jobs run one by one until a deadline.
"""

import dataclasses
import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu_stages import Part, absent, verdict
from benchmarks.lstm import measure, present, suite_settings
from benchmarks.lstm_implementations import BOTH, PADDED, PERSISTENT, STEPWISE, Cell
from benchmarks.suite import Run, SuiteResult, describe_machine, format_tables
from benchmarks.worker import JobResults, run_jobs
from captioner.ops.algorithms import Algorithm

REPEATS = 5
CELL_SECONDS = 90.0  # what takes longer hangs
FEATURES = {"encoder": "torchvision/resnet50", "pictures": 2048, "picture_side": 448}
FEATURES |= {"batch_size": 256, "workers": 8, "readers": ["pil", "torchvision"]}
FEATURES_SECONDS = 90.0
Note = Callable[[Part], None]


def run_stage(
    do: Callable[..., Any],
    jobs: Mapping[str, Mapping[str, Any]],
    judged: Callable[[JobResults], Part],
    *,
    seconds: float,
    job_seconds: float,
    device: str,
    note: Note = lambda part: None,
) -> Part:
    """As many of `jobs` as `seconds` allow; `note` is given the part after each of them."""
    limits: dict[str, Any] = {"deadline": time.time() + seconds, "job_seconds": job_seconds}
    return judged(run_jobs(do, jobs, device=device, **limits, note=lambda now: note(judged(now))))


def judge(found: JobResults, settings: dict[str, Any]) -> Part:
    """A stage's part of the record from its jobs: failed where a job did, a requirement is not met,
    an implementation is `absent` or nothing was measured."""
    results = found.results
    requirements = [one for result in results.values() for one in result["requirements"]]
    met = sum(one["met"] for one in requirements)
    failed = dict(found.failed)
    for job, result in results.items():
        failed |= {f"{job}, {name}": why for name, why in result.get("absent", {}).items()}
    summary = f"{len(results)} jobs done"
    for names, words in ((failed, "failed"), (found.skipped, "left out for want of time")):
        summary += f", {len(names)} {words}" if names else ""
    summary += f"; {met} of {len(requirements)} requirements met"
    if not results:
        why = "; ".join(failed.values()) or "no time was left"
        summary = f"nothing was measured: {why[-300:]}"
    tables = {"figures", "requirements", "absent"}
    details = {
        job: {k: v for k, v in one.items() if k not in tables} for job, one in results.items()
    }
    return verdict(
        bool(results) and not failed and met == len(requirements),
        summary,
        settings=settings,
        figures=[one for result in results.values() for one in result["figures"]],
        requirements=requirements,
        details={job: more for job, more in details.items() if more},
        failed=failed,
        skipped=found.skipped,
    )


def format_jobs(name: str, part: Part, shown: Sequence[str] = ()) -> list[str]:
    """What such a stage measured, for the terminal; nothing where it did not run."""
    lines = [f"{name}:", *format_tables(part, shown), ""] if part.get("figures") else []
    failed = part.get("failed", {}).items()
    return lines + [f"FAILED {job}: {why.splitlines()[0]}" for job, why in failed]


def gpu_grid() -> list[Cell]:
    """Every cell of suite=lstm, those first that say most where time runs out."""

    def cells(dtypes: str, batches: Sequence[int], sizes: Sequence[int] = (512,)) -> list[Cell]:
        axes = itertools.product(["flickr8k"], dtypes.split(), sizes, batches)
        return [Cell(*one) for one in axes]

    sizes, batches = (512, 1024, 256), (64, 256, 16, 1024)
    found = [
        *cells("bfloat16", (64, 128, 256)),
        *cells("float16 tf32", (64,)),
        *cells("bfloat16 tf32", batches, sizes),
        *(Cell(name, "bfloat16", 512, b) for name in ("equal", "outlier") for b in (64, 256)),
        Cell("equal", "tf32", 512, 64),  # as haste's published report, but inputs 512 wide
        *cells("float16 float32", batches, sizes),
    ]
    return list(dict.fromkeys(found))


def run_lstm_stage(
    seconds: float,
    *,
    cells: Sequence[Cell] | None = None,
    device: str = "cuda",
    note: Note = lambda part: None,
) -> Part:
    """Measure as many cells as `seconds` allow; `note` is given the part after each of them."""
    machine = describe_machine(torch.device(device))["device"]
    jobs = {str(cell): dataclasses.asdict(cell) for cell in cells or gpu_grid()}
    judged = functools.partial(judge_cells, machine=machine)
    limits = {"seconds": seconds, "job_seconds": CELL_SECONDS}
    return run_stage(measure_cell, jobs, judged, **limits, device=device, note=note)


def measure_cell(device: torch.device, **cell: Any) -> dict[str, Any]:
    """In the process of its own: a cell's figures, its batch, and what cannot run."""
    names, missing = present((PADDED, STEPWISE, *PERSISTENT), device)
    result = SuiteResult()
    batch = measure(result, Cell(**cell), names, Run(repeats=REPEATS, device=device))
    return {**result.as_json(), "batch": batch, "absent": missing}


def judge_cells(found: JobResults, machine: str) -> Part:
    """The stage's part of the record; with it the times from which an algorithm is chosen."""
    settings = suite_settings({}, Run(repeats=REPEATS, device=torch.device("cpu")))
    settings["batches"] = [one["batch"] for one in found.results.values()]
    part = judge(found, settings)
    algorithms = measured_algorithms(part["figures"], machine)
    return {**part, "details": {}, "algorithms": algorithms}


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


def run_features_stage(*, device: str = "cuda", **settings: Any) -> Part:
    """suite=features by both readers of images; `settings`: what is to differ from FEATURES."""
    for package in ("torchvision", "PIL", "omegaconf"):
        if importlib.util.find_spec(package) is None:
            return absent(package)
    jobs = {"features": {**FEATURES, **settings}}
    judged, limit = functools.partial(judge, settings=FEATURES), FEATURES_SECONDS
    part = run_stage(
        measure_features, jobs, judged, seconds=limit, job_seconds=limit, device=device
    )
    rates = [f"{one['implementation']} {one['median']:.0f}" for one in part["figures"]]
    return {**part, "summary": f"{part['summary']}; images a second: {', '.join(rates)}"}


def measure_features(device: torch.device, **settings: Any) -> dict[str, Any]:
    """In the process of its own: suite=features, which a bare machine cannot import."""
    from benchmarks.features import features_suite
    from benchmarks.settings import FeaturesBenchmark

    result = features_suite(FeaturesBenchmark(**settings), Run(repeats=1, device=device))
    return {**result.as_json(), "settings": result.settings}
