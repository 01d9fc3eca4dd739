"""The stages of `make gpu-check` before the benchmarks, and how a benchmark's jobs are judged.

A stage takes a `Checkout` and returns its part of the record: `status` ("passed", "failed" or
"skipped"), a `summary` in a sentence, and details.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import format_tables
from benchmarks.settings import Run
from benchmarks.worker import Finished, JobResults, python_path, run_jobs, run_process

# A file of tests, and which of them concern a GPU (pytest's -k), or None for all.
CUDA_TESTS = (
    ("tests/ops/test_lstm_cuda.py", None),
    ("tests/ops/test_lstm_packed.py", "cuda"),
    ("tests/models/test_lstm.py", None),
    ("tests/training/test_graph_capture.py", None),
)
BUILD_SECONDS, TEST_SECONDS, SANITIZER_SECONDS = 900.0, 600.0, 300.0
TOOLS = ("memcheck", "racecheck", "synccheck")
SMALL_CASE = (
    *("-m", "benchmarks.lstm_small_case", "cuda", "float32:plain", "bfloat16:plain"),
    *("tf32:persistent", "bfloat16:persistent", "float16:cluster", "tf32:cluster"),
)
ASK_FOR_FUSED = "from captioner.ops import choose_backend; choose_backend('fused', 'cuda')"
FEATURES = {"encoder": "torchvision/resnet50", "pictures": 2048, "picture_side": 448}
FEATURES |= {"batch_size": 256, "workers": 8, "readers": ["pil", "torchvision"]}
FEATURES_SECONDS = 90.0
Part = dict[str, Any]
Note = Callable[[Part], None]


@dataclass(frozen=True)
class Checkout:
    """The sources to check, the interpreter to check them with, and the GPU's architecture."""

    root: Path
    python: str
    architecture: str  # as TORCH_CUDA_ARCH_LIST has it, such as 9.0

    @property
    def environment(self) -> dict[str, str]:
        """What every stage's programs see besides this process's own environment."""
        return {
            "PYTHONPATH": python_path(self.root),
            "CAPTIONER_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": self.architecture,
            "PYTHONUNBUFFERED": "1",
        }

    def run(
        self, *arguments: str, timeout: float, before: Sequence[str] = (), **environment: str
    ) -> Finished:
        """Run this checkout's Python with `arguments`, under the program `before` if given."""
        return run_process(
            [*before, self.python, *arguments],
            folder=self.root,
            timeout=timeout,
            environment={**self.environment, **environment},
        )


def build_extension(checkout: Checkout) -> Part:
    """Build with CUDA for this GPU, then ask for the fused backend on it."""
    build = checkout.run("setup.py", "build_ext", "--inplace", "--force", timeout=BUILD_SECONDS)
    part = {"architecture": checkout.architecture, "log": build.output}
    if build.code != 0:
        return {"status": "failed", "summary": f"the build: {build.ending}", **part}
    asked = checkout.run("-c", ASK_FOR_FUSED, timeout=120)
    if asked.code != 0:
        reason = _last_line(asked.output)
        return {"status": "failed", "summary": f"built, but not there: {reason}", **part}
    return {"status": "passed", "summary": f"built in {build.seconds:.0f} s", **part}


def run_tests(checkout: Checkout, tests: tuple[tuple[str, str | None], ...] = CUDA_TESTS) -> Part:
    """Every test that runs on the GPU, a process a file: counts, and each failure's message."""
    files = {path: _test_file(checkout, path, chosen) for path, chosen in tests}
    kinds = ("passed", "failed", "skipped")
    counts = {kind: sum(part[kind] for part in files.values()) for kind in kinds}
    wrong = [path for path, part in files.items() if part["status"] == "failed"]
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    if wrong:
        summary += f"; not right: {', '.join(wrong)}"
    unheard = [f"{path}: {one['why']}" for path, one in files.items() if one["status"] == "skipped"]
    if unheard:
        summary += f"; not run: {'; '.join(unheard)}"
    status = "failed" if wrong else "passed"
    return {"status": status, "summary": summary, **counts, "files": files}


def _test_file(checkout: Checkout, path: str, chosen: str | None) -> Part:
    none = {"passed": 0, "failed": 0, "skipped": 0}
    if not (checkout.root / path).is_file():
        return {"status": "failed", "why": "there is no such file", **none}
    source = (checkout.root / path).read_text(encoding="utf-8")
    if "import hypothesis" in source or "from hypothesis" in source:
        there = checkout.run("-c", "import hypothesis", timeout=60).code == 0
        if not there:
            return {"status": "skipped", "why": "hypothesis is not installed", **none}
    select = [] if chosen is None else ["-k", chosen]
    options = ("-q", "-rfEs", "--tb=short", "-p", "no:cacheprovider")
    done = checkout.run("-m", "pytest", path, *select, *options, timeout=TEST_SECONDS)
    part = {**read_summary(done.output), "seconds": round(done.seconds, 1)}
    if done.code == 0 and part["passed"]:
        return {"status": "passed", **part}
    why = done.ending if done.code or done.code is None else "no test ran, all were skipped"
    return {"status": "failed", "why": why, "output": done.output, **part}


def read_summary(output: str) -> Part:
    """Counts of pytest's last line, and its lines about what failed or was skipped."""
    lines = output.splitlines()
    counted = re.findall(r"(\d+) (passed|failed|skipped|error)", (lines or [""])[-1])
    counts = {kind: int(number) for number, kind in counted}
    failed = counts.pop("error", 0) + counts.get("failed", 0)
    told = {
        key: [line for line in lines if line.startswith(begin)]
        for key, begin in (("failures", ("FAILED", "ERROR")), ("skip_reasons", ("SKIPPED",)))
    }
    return {"passed": 0, "skipped": 0, **counts, "failed": failed, **told}


def run_sanitizer(checkout: Checkout, program: str | None = None) -> Part:
    """compute-sanitizer's checks of memory, races and barriers, over a small case by every
    algorithm; skipped where it is absent."""
    program = program or find_in_toolkit("compute-sanitizer")
    if program is None:
        return {"status": "skipped", "summary": "compute-sanitizer is not installed"}
    tools: dict[str, Part] = {}
    for tool in TOOLS:
        done = checkout.run(
            *SMALL_CASE,
            before=(program, "--tool", tool, "--error-exitcode", "9"),
            timeout=SANITIZER_SECONDS,
            # Tensors are otherwise cut from large blocks, and a row too far is still inside one.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        tools[tool] = {
            "status": "passed" if done.code == 0 else "failed",
            "why": done.ending,
            "summary": _sanitizer_summary(done.output),
            "seconds": round(done.seconds, 1),
            "output": done.output,
        }
    wrong = [tool for tool, part in tools.items() if part["status"] == "failed"]
    words = [f"{tool}: {part['summary'] or part['why']}" for tool, part in tools.items()]
    return {
        "status": "failed" if wrong else "passed",
        "summary": "; ".join(words),
        "program": program,
        "tools": tools,
    }


def find_in_toolkit(program: str) -> str | None:
    """A program on the path or in CUDA's folder."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(folders))


def _sanitizer_summary(output: str) -> str:
    """Its last line with a verdict, such as ERROR SUMMARY: 0 errors."""
    lines = [line.strip("= \n") for line in output.splitlines() if "SUMMARY" in line]
    return lines[-1] if lines else ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it says nothing"


def run_stage(
    do: Callable[..., Any],
    jobs: Mapping[str, Mapping[str, Any]],
    *,
    seconds: float,
    job_seconds: float,
    device: str,
    judged: Callable[[JobResults], Part],
    note: Note = lambda part: None,
) -> Part:
    """As many of `jobs` as `seconds` allow; `note` is given the part after each of them."""
    deadline = time.time() + seconds
    limits: dict[str, Any] = {"deadline": deadline, "job_seconds": job_seconds}
    found = run_jobs(do, jobs, device=device, **limits, note=lambda now: note(judged(now)))
    return judged(found)


def judge(found: JobResults, settings: dict[str, Any]) -> Part:
    """A stage's part of the record from its jobs, each of which gave figures and requirements.

    It failed where a job did, or what was asked is not reached, or nothing was measured. An
    implementation that a job reports as `absent` counts as failed.
    """
    results = found.results
    requirements = [one for result in results.values() for one in result["requirements"]]
    missed = [one for one in requirements if not one["met"]]
    failed = dict(found.failed)
    for job, result in results.items():
        failed |= {f"{job}, {name}": why for name, why in result.get("absent", {}).items()}
    summary = f"{len(results)} jobs done"
    for names, words in ((failed, "failed"), (found.skipped, "left out for want of time")):
        summary += f", {len(names)} {words}" if names else ""
    summary += f"; {len(requirements) - len(missed)} of {len(requirements)} requirements met"
    if not results:
        why = "; ".join(failed.values()) or "no time was left"
        summary = f"nothing was measured: {why[-300:]}"
    tables = {"figures", "requirements", "absent"}
    details = {
        job: {k: v for k, v in one.items() if k not in tables} for job, one in results.items()
    }
    return {
        "status": "failed" if failed or missed or not results else "passed",
        "summary": summary,
        "settings": settings,
        "figures": [one for result in results.values() for one in result["figures"]],
        "requirements": requirements,
        "details": {job: more for job, more in details.items() if more},
        "failed": failed,
        "skipped": found.skipped,
    }


def format_jobs(name: str, part: Part, shown: Sequence[str] = ()) -> list[str]:
    """What such a stage measured, for the terminal; nothing where it did not run."""
    lines = [f"{name}:", *format_tables(part, shown), ""] if part.get("figures") else []
    failed = part.get("failed", {}).items()
    return lines + [f"FAILED {job}: {why.splitlines()[0]}" for job, why in failed]


def run_features_stage(*, device: str = "cuda", **settings: Any) -> Part:
    """suite=features by both readers of images; `settings`: what is to differ from FEATURES."""
    for package in ("torchvision", "PIL", "omegaconf"):
        if importlib.util.find_spec(package) is None:
            return {"status": "skipped", "summary": f"{package} is not installed"}
    part = run_stage(
        measure_features,
        {"features": {**FEATURES, **settings}},
        seconds=FEATURES_SECONDS,
        job_seconds=FEATURES_SECONDS,
        device=device,
        judged=lambda found: judge(found, FEATURES),
    )
    rates = [f"{one['implementation']} {one['median']:.0f}" for one in part["figures"]]
    return {**part, "summary": f"{part['summary']}; images a second: {', '.join(rates)}"}


def measure_features(device: torch.device, **settings: Any) -> dict[str, Any]:
    """In the process of its own: suite=features, which a bare machine cannot import."""
    from benchmarks.features import FeaturesBenchmark, features_suite

    result = features_suite(FeaturesBenchmark(**settings), Run(repeats=1, device=device))
    return {**result.as_json(), "settings": result.settings}
