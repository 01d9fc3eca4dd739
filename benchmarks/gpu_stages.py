"""The stages of `make gpu-check` that run programs: build, tests, sanitizer, latency, counters.

A stage takes a `Checkout` and returns its part of the record: `status` ("passed", "failed" or
"skipped"), a `summary` in a sentence, and details. A stage whose program is absent is skipped.
"""

import csv
import io
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.worker import Finished, python_path, run_process

# A file of tests, and which of them concern a GPU (pytest's -k), or None for all.
CUDA_TESTS = (
    ("tests/ops/test_lstm_cuda.py", None),
    ("tests/ops/test_lstm_packed.py", "cuda"),
    ("tests/models/test_lstm.py", None),
    ("tests/training/test_graph_capture.py", None),
    ("tests/training/test_stacked.py", "gpu"),
    ("tests/training/test_stacked_graph.py", "gpu"),
)
BUILD_SECONDS, TEST_SECONDS, SECONDS = 900.0, 600.0, 300.0
TOOLS = ("memcheck", "racecheck", "synccheck")
SMALL_CASE = ("-m", "benchmarks.lstm_small_case")
SANITIZED = (
    *("cuda", "float32:plain", "bfloat16:plain", "tf32:persistent", "bfloat16:persistent"),
    *("float16:cluster", "tf32:cluster", "bfloat16:plain:3", "bfloat16:persistent:3"),
    "tf32:cluster:3",
)
ASK_FOR_FUSED = "from captioner.ops import choose_backend; choose_backend('fused', 'cuda')"
METRICS = {  # Nsight Compute's, and what the record calls them
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor pipe busy, %",
    "lts__t_bytes.sum": "bytes through the second-level cache",
    "dram__bytes.sum": "bytes through memory",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "wavefronts of shared memory",
    "gpu__time_duration.sum": "nanoseconds",
}
Part = dict[str, Any]


@dataclass(frozen=True)
class Checkout:
    """The sources to check, the interpreter to check them with, and the GPU's architecture."""

    root: Path
    python: str
    architecture: str  # as TORCH_CUDA_ARCH_LIST has it, such as 9.0

    def run(self, *command: str, timeout: float = SECONDS, **environment: str) -> Finished:
        """Run a program on this checkout's packages, its environment extended."""
        common = {
            "PYTHONPATH": python_path(self.root),
            "CAPTIONER_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": self.architecture,
            "PYTHONUNBUFFERED": "1",
        }
        both = {**common, **environment}
        return run_process(command, folder=self.root, timeout=timeout, environment=both)


def verdict(passed: bool, summary: str, /, **details: Any) -> Part:
    """A stage's part of the record."""
    return {"status": "passed" if passed else "failed", "summary": summary, **details}


def absent(program: str) -> Part:
    """The part of a stage that cannot run."""
    return {"status": "skipped", "summary": f"{program} is not installed"}


def find_in_toolkit(program: str) -> str | None:
    """A program on the path or in CUDA's folder."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(folders))


def build_extension(checkout: Checkout) -> Part:
    """Build with CUDA for this GPU, then ask for the fused backend on it."""
    command = (checkout.python, "setup.py", "build_ext", "--inplace", "--force")
    build = checkout.run(*command, timeout=BUILD_SECONDS)
    details = {"architecture": checkout.architecture, "log": build.output}
    if build.code != 0:
        return verdict(False, f"the build: {build.ending}", **details)
    asked = checkout.run(checkout.python, "-c", ASK_FOR_FUSED)
    if asked.code != 0:
        reason = asked.output.strip().rpartition("\n")[2]
        return verdict(False, f"built, but not there: {reason}", **details)
    return verdict(True, f"built in {build.seconds:.0f} s", **details)


def run_tests(checkout: Checkout, tests: tuple[tuple[str, str | None], ...] = CUDA_TESTS) -> Part:
    """Every test that runs on the GPU, a process a file: counts, and each failure's message."""
    files = {path: _test_file(checkout, path, chosen) for path, chosen in tests}
    kinds = ("passed", "failed", "skipped")
    counts = {kind: sum(part[kind] for part in files.values()) for kind in kinds}
    wrong = [path for path, part in files.items() if part["status"] == "failed"]
    unheard = [f"{path}: {one['why']}" for path, one in files.items() if one["status"] == "skipped"]
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    summary += f"; not right: {', '.join(wrong)}" if wrong else ""
    summary += f"; not run: {'; '.join(unheard)}" if unheard else ""
    return verdict(not wrong, summary, **counts, files=files)


def _test_file(checkout: Checkout, path: str, chosen: str | None) -> Part:
    none = {"passed": 0, "failed": 0, "skipped": 0}
    if not (checkout.root / path).is_file():
        return {"status": "failed", "why": "there is no such file", **none}
    needed = re.search("(import|from) hypothesis", (checkout.root / path).read_text("utf-8"))
    if needed and checkout.run(checkout.python, "-c", "import hypothesis").code != 0:
        return {"status": "skipped", "why": "hypothesis is not installed", **none}
    select = [] if chosen is None else ["-k", chosen]
    options = ("-q", "-rfEs", "--tb=short", "-p", "no:cacheprovider")
    command = (checkout.python, "-m", "pytest", path, *select, *options)
    done = checkout.run(*command, timeout=TEST_SECONDS)
    part = {**read_summary(done.output), "seconds": round(done.seconds, 1)}
    if done.code == 0 and part["passed"]:
        return {"status": "passed", **part}
    why = done.ending if done.code != 0 else "no test ran, all were skipped"
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
    """compute-sanitizer's checks of memory, races and barriers on a small case, all algorithms."""
    program = program or find_in_toolkit("compute-sanitizer")
    if program is None:
        return absent("compute-sanitizer")
    tools: dict[str, Part] = {}
    for tool in TOOLS:
        done = checkout.run(
            *(program, "--tool", tool, "--error-exitcode", "9"),
            *(checkout.python, *SMALL_CASE, *SANITIZED),
            # Tensors are otherwise cut from large blocks, and a row too far is still inside one.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        found = [line.strip("= ") for line in done.output.splitlines() if "SUMMARY" in line]
        details = {"seconds": round(done.seconds, 1), "output": done.output}
        tools[tool] = verdict(done.code == 0, [done.ending, *found][-1], why=done.ending, **details)
    summary = "; ".join(f"{tool}: {part['summary']}" for tool, part in tools.items())
    passed = all(part["status"] == "passed" for part in tools.values())
    return verdict(passed, summary, program=program, tools=tools)


def run_latency(checkout: Checkout) -> Part:
    """benchmarks/latency.cu, compiled and run: microseconds of a barrier among the blocks of a
    group and of an exchange of rows, by algorithm and group."""
    nvcc = find_in_toolkit("nvcc")
    if nvcc is None:
        return absent("nvcc")
    flags = ("-std=c++17", "-O3", f"-arch=sm_{checkout.architecture.replace('.', '')}")
    include = ("-isystem", str(Path(torch.__file__).parent / "include"), "-I", "csrc/cuda")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "latency")
        done = checkout.run(nvcc, *flags, *include, "-o", program, "benchmarks/latency.cu")
        if done.code != 0:
            return verdict(False, "latency.cu does not compile", output=done.output)
        done = checkout.run(program)
    return judge_latency(done.code, done.output)


def judge_latency(code: int | None, output: str) -> Part:
    """The part of the record from what the program printed: a JSON object a line."""
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    words = [
        f"{one['algorithm']}, {one['blocks']} blocks: barrier {one['barrier_us']:.2f} us, exchange "
        f"{one['exchange_us']:.2f} us"
        for one in found
    ]
    summary = "; ".join(words) or f"it ended with {code}"
    return verdict(code == 0 and bool(found), summary, figures=found, output=output)


def run_counters(checkout: Checkout) -> Part:
    """How busy tensor cores, second-level cache and shared memory are in the persistent kernels at
    E = H = 512, B = 64, by Nsight Compute."""
    program = find_in_toolkit("ncu")
    if program is None:
        return absent("ncu (Nsight Compute)")
    options = ("--kernel-name", "regex:(forward|backward)_steps", "--launch-count", "8")
    metrics = ("--csv", "--metrics", ",".join(METRICS))
    done = checkout.run(program, *metrics, *options, checkout.python, *SMALL_CASE)
    if "ERR_NVGPUCTRPERM" in done.output:
        return {"status": "skipped", "summary": "this user may not read the GPU's counters"}
    kernels = read_counters(done.output)
    passed = done.code == 0 and bool(kernels)
    summary = f"{len(kernels)} kernels counted" if passed else done.ending
    return verdict(passed, summary, kernels=kernels, output=done.output)


def read_counters(output: str) -> list[dict[str, Any]]:
    """Of every launch in ncu's CSV its kernel and the metrics, by their names in METRICS."""
    _, head, table = output.partition('"ID"')
    launches: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO(head + table)):
        name, value = row.get("Metric Name"), row.get("Metric Value")
        if name in METRICS and value:
            kernel = (row.get("Kernel Name") or "").split("(")[0]
            launch = launches.setdefault(row["ID"], {"kernel": kernel})
            launch[METRICS[name]] = float(value.replace(",", ""))
    return list(launches.values())
