"""`make gpu-check`: one unattended command that builds, tests and measures on a machine with a GPU.

It needs PyTorch, numpy and pytest, and CUDA's compiler. What each stage found lies in one JSON
record, written after every stage, so that an interruption loses only what was still under way.
"""

import argparse
import datetime
import functools
import hashlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_stages
from benchmarks.gpu_epoch import epoch_jobs, run_epoch_stage
from benchmarks.gpu_jobs import Note, format_jobs, run_features_stage, run_lstm_stage
from benchmarks.gpu_models import run_models_stage
from benchmarks.gpu_stages import Checkout, Part
from benchmarks.lstm import SHOWN
from benchmarks.suite import REDUCED, describe_machine, versions, write_record
from benchmarks.worker import ROOT
from captioner.errors import CaptionerError
from captioner.files import read_json, write_json
from captioner.ops.algorithms import check_table

TABLE = Path("src", "captioner", "ops", "algorithms.json")
STAGES: dict[str, Callable[[Checkout, argparse.Namespace, Note], Part]] = {
    "build": lambda checkout, options, note: gpu_stages.build_extension(checkout),
    "tests": lambda checkout, options, note: gpu_stages.run_tests(checkout),
    "sanitizer": lambda checkout, options, note: gpu_stages.run_sanitizer(checkout),
    "latency": lambda checkout, options, note: gpu_stages.run_latency(checkout),
    "benchmark": lambda checkout, options, note: run_lstm_stage(60 * options.minutes, note=note),
    "models": lambda checkout, options, note: run_models_stage(note=note),
    "counters": lambda checkout, options, note: gpu_stages.run_counters(checkout),
    # Traces of the time line go beside the record.
    "epoch": lambda checkout, options, note: run_epoch_stage(
        epoch_jobs(Path(options.out).absolute().with_suffix("")), note=note
    ),
    "features": lambda checkout, options, note: run_features_stage(),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every stage passed (or was skipped), 1 when one failed, 2 without a GPU."""
    example = "python scripts/gpu_check.py --minutes 4 --stages build tests"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], epilog=example)
    parser.add_argument("--out", help="the record (benchmarks/results/gpu/DEVICE-DATE.json)")
    parser.add_argument(
        "--stages", nargs="+", choices=[*STAGES], default=[*STAGES], help="only these (all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="of the benchmark; the rest is left out (7.5)"
    )
    parser.add_argument(
        "--architecture", help="as in TORCH_CUDA_ARCH_LIST, such as 9.0a (this GPU's)"
    )
    parser.add_argument(
        *("--fill-algorithms", "--fill-paths"),
        metavar="RECORD",
        help=f"instead of checking, put what RECORD measured into {TABLE}",
    )
    options = parser.parse_args(arguments)
    if options.fill_algorithms:
        fill_algorithms(Path(options.fill_algorithms), ROOT / TABLE)
        return 0
    if not torch.cuda.is_available():
        wrong = f"gpu-check needs a CUDA GPU, and PyTorch {torch.__version__} finds none here"
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    checkout = Checkout(ROOT, sys.executable, options.architecture or f"{major}.{minor}")
    machine = describe_gpu(device)
    options.out = options.out or default_out(machine["device"])
    chosen = [name for name in STAGES if name in options.stages]
    stages = {name: functools.partial(STAGES[name], checkout, options) for name in chosen}
    try:
        record = run_check(stages, head=record_head(ROOT, machine), out=Path(options.out))
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_check(record))
    print(f"record: {options.out}")
    return int(any(part["status"] == "failed" for part in record["stages"].values()))


def fill_algorithms(record: Path, table: Path) -> None:
    """Put the times of a record into the table by which the fused LSTM chooses its algorithm; what
    the table has of other devices stays."""
    measured = read_json(record)["stages"]["benchmark"]["algorithms"]
    write_json(table, check_table({**read_json(table), **measured}))
    print(f"{table}: {', '.join(measured)}")


def run_check(
    stages: Mapping[str, Callable[[Note], Part]], *, head: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Run all `stages`, whatever becomes of each, and write the record after every one."""
    record: dict[str, Any] = {**head, "finished": False, "stages": {}}

    def note(name: str, part: Part, **more: Any) -> None:
        record["stages"][name] = {**part, **more}
        write_record(out, record)

    write_record(out, record)
    for name, stage in stages.items():
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        try:
            part = stage(functools.partial(note, name, status="running"))
        except Exception as error:
            part = {"status": "failed", "summary": f"{type(error).__name__}: {error}"}
        note(name, part, seconds=round(time.monotonic() - started, 1))
        print(f"{name}: {part['status']}: {part['summary']}", flush=True)
    record["finished"] = True
    write_record(out, record)
    return record


def record_head(root: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """When, where, with which versions and of which sources the record was taken."""
    return {
        "check": "gpu",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit_of(root),
        "sources": digest_of_sources(root),
        "machine": dict(machine),
        "versions": versions(),
        "spread": REDUCED,
    }


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """The machine, its GPU and what drives it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        **describe_machine(device),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "driver": _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "compiler": _answer("nvcc", "--version"),
        "cudnn": torch.backends.cudnn.version(),
    }


def commit_of(root: Path) -> str:
    """The commit that is checked out, "changed" where files differ from it; or "unknown"."""
    options = ("--always", "--abbrev=40", "--exclude=*", "--dirty=, changed")
    return _answer("git", "-C", str(root), "describe", *options)


def digest_of_sources(root: Path) -> str:
    """SHA-256 over csrc/ and the operators: which kernels a record is of, where git is absent."""
    digest = hashlib.sha256()
    folders = (root / "csrc", root / "src" / "captioner" / "ops")
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py"):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _answer(*command: str) -> str:
    """The last line that a program prints, or "unknown"."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.strip().splitlines() or [""])[-1]


def default_out(device: str) -> Path:
    """benchmarks/results/gpu/, by device and date."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d-%H%M")
    return ROOT / "benchmarks" / "results" / "gpu" / f"{name}-{date}.json"


def format_check(record: Mapping[str, Any]) -> str:
    """The benchmark's tables, every failed test, and a line a stage."""
    stages = record["stages"]
    lines = []
    for name in ("benchmark", "models", "epoch", "features"):
        lines += format_jobs(name, stages.get(name, {}), SHOWN if name == "benchmark" else ())
    for part in stages.get("tests", {}).get("files", {}).values():
        lines += part.get("failures", ())
    if stages.get("benchmark", {}).get("skipped"):
        lines.append("left out: " + "; ".join(stages["benchmark"]["skipped"]))
    machine = record["machine"]
    lines.append(f"{machine['device']}, driver {machine['driver']}, commit {record['commit']}")
    lines += [f"  {name}: {part['status']}: {part['summary']}" for name, part in stages.items()]
    return "\n".join(lines)
