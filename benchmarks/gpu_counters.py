"""The stages `latency` and `counters` of `make gpu-check`: what the persistent kernels wait for.

`latency` compiles benchmarks/latency.cu with nvcc and runs it: the time of a barrier among the
blocks of a group, and of exchanging rows, by flags and by clusters. `counters` asks Nsight Compute
how busy tensor cores, second-level cache and shared memory are. Both are skipped, aloud, without
their programs.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_stages import Checkout, Part, find_in_toolkit
from benchmarks.worker import Finished, run_process

SECONDS = 120.0
SOURCE = Path("benchmarks") / "latency.cu"
METRICS = {
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor pipe busy, %",
    "lts__t_bytes.sum": "bytes through the second-level cache",
    "dram__bytes.sum": "bytes through memory",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "wavefronts of shared memory",
    "gpu__time_duration.sum": "nanoseconds",
}
CASE = ("-m", "benchmarks.lstm_small_case")


def compile_latency(checkout: Checkout, nvcc: str, out: Path) -> Finished:
    """Compile benchmarks/latency.cu for the GPU."""
    include = str(Path(torch.__file__).parent / "include")
    flags = ("-std=c++17", "-O3", f"-arch=sm_{checkout.architecture.replace('.', '')}")
    folders = ("-isystem", include, "-I", str(checkout.root / "csrc" / "cuda"))
    return _run(checkout, nvcc, *flags, *folders, "-o", str(out), str(checkout.root / SOURCE))


def _run(checkout: Checkout, *command: str) -> Finished:
    environment = checkout.environment
    return run_process(command, folder=checkout.root, environment=environment, timeout=SECONDS)


def run_latency(checkout: Checkout) -> Part:
    """Microseconds of a barrier and of an exchange, by algorithm and group."""
    nvcc = find_in_toolkit("nvcc")
    if nvcc is None:
        return {"status": "skipped", "summary": "nvcc is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "latency"
        done = compile_latency(checkout, nvcc, program)
        if done.code != 0:
            wrong = "latency.cu does not compile"
            return {"status": "failed", "summary": wrong, "output": done.output}
        done = _run(checkout, str(program))
    return judge_latency(done.code, done.output)


def judge_latency(code: int | None, output: str) -> Part:
    """The part of the record from what the program printed: a JSON object a line."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in lines]
    words = [
        f"{one['algorithm']}, {one['blocks']} blocks: barrier {one['barrier_us']:.2f} us, exchange "
        f"{one['exchange_us']:.2f} us"
        for one in found
    ]
    right = code == 0 and bool(found)
    return {
        "status": "passed" if right else "failed",
        "summary": "; ".join(words) or f"it ended with {code}",
        "figures": found,
        "output": output,
    }


def run_counters(checkout: Checkout) -> Part:
    """Nsight Compute's counters of the persistent kernels at E = H = 512, B = 64."""
    program = find_in_toolkit("ncu")
    if program is None:
        return {"status": "skipped", "summary": "ncu (Nsight Compute) is not installed"}
    options = ("--kernel-name", "regex:(forward|backward)_steps", "--launch-count", "8")
    metrics = ("--csv", "--metrics", ",".join(METRICS))
    done = _run(checkout, program, *metrics, *options, checkout.python, *CASE)
    if "ERR_NVGPUCTRPERM" in done.output:
        return {"status": "skipped", "summary": "this user may not read the GPU's counters"}
    kernels = read_counters(done.output)
    right = done.code == 0 and bool(kernels)
    return {
        "status": "passed" if right else "failed",
        "summary": f"{len(kernels)} kernels counted" if right else done.ending,
        "kernels": kernels,
        "output": done.output,
    }


def read_counters(output: str) -> list[dict[str, Any]]:
    """Of every launch in ncu's CSV its kernel and the metrics, by their names in METRICS."""
    start = output.find('"ID"')
    launches: dict[str, dict[str, Any]] = {}
    if start < 0:
        return []
    for row in csv.DictReader(io.StringIO(output[start:])):
        name, value = row.get("Metric Name"), row.get("Metric Value")
        if name in METRICS and value:
            kernel = (row.get("Kernel Name") or "").split("(")[0]
            launch = launches.setdefault(row["ID"], {"kernel": kernel})
            launch[METRICS[name]] = float(value.replace(",", ""))
    return list(launches.values())
