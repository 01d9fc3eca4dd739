"""The epoch suite of `make gpu-check` without a GPU: the same code at a tiny size, uncaptured."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_epoch, roofline, worker
from benchmarks.captions import Workload
from benchmarks.gpu_epoch import (
    OURS,
    Jobs,
    busy_microseconds,
    compare_losses,
    epoch_jobs,
    microseconds_by_kernel,
    read_events,
    run_epoch_stage,
    take_trace,
    time_epochs,
)
from benchmarks.gpu_jobs import format_jobs, judge
from benchmarks.roofline import Gemms, step_roofline
from benchmarks.timing import seconds_a_call
from benchmarks.training import PLAIN, StepSettings, Training
from benchmarks.worker import JobResults, run_jobs

CPU = torch.device("cpu")


def training(**sizes: Any) -> Training:
    settings = StepSettings(**{"hidden_size": 8, "batch_size": 16, "clip_norm": 5.0, **sizes})
    return Training(workload=Workload(12, 6), settings=settings, device=CPU)


# -- the roofline -------------------------------------------------------------------------------


def test_the_roofline_counts_every_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []

    def counted(call: Any, device: torch.device, **_: Any) -> float:
        taken.append(tuple(call().shape))
        return 1.0

    monkeypatch.setattr(roofline, "seconds_a_call", counted)
    monkeypatch.setattr(roofline, "bytes_a_second", lambda device: 4.0)
    gemms = functools.partial(Gemms, hidden=4, vocab_size=7, feature_dim=5, device=CPU)
    found = step_roofline(gemms(), batch=3, tokens=20)
    # Three of each layer, but for the image projection's: its input has no gradient.
    assert taken == [
        *((3, 4), (4, 5)),
        *((23, 16), (16, 4), (23, 4)),
        *((20, 16), (16, 4), (20, 4)),
        *((20, 7), (7, 4), (20, 4)),
    ]
    weights = 4 * 5 + 4 * 4 * 4 * 2 + 7 * 4 * 2
    assert found.gemms == 11 and found.optimizer == 7 * weights
    assert found.seconds == found.gemms + found.optimizer
    half = step_roofline(gemms(dtype=torch.bfloat16), batch=3, tokens=20)
    assert half.optimizer == 7.5 * weights


def test_rates_are_measured() -> None:
    assert 1e7 < roofline.bytes_a_second(CPU) < 1e13
    slow = seconds_a_call(lambda: time.sleep(0.001), CPU, calls=2, repeats=2)
    assert 0.001 <= slow < 0.1


# -- jobs in a process of their own -------------------------------------------------------------


def some_job(device: torch.device, what: str) -> list[Any]:
    """In the other process."""
    if what == "breaks":
        raise ValueError("no such kernel")
    if what == "crashes":
        print("an illegal address", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        time.sleep(60)
    if what == "loses":
        worker.device_works = lambda device: False
    return [what, str(device), os.getpid()]


def jobs_in(*names: str, seconds: float = 900, noted: list[int] | None = None) -> JobResults:
    jobs = {name: {"what": name, "alone": name == "alone"} for name in names}
    found: list[int] = [] if noted is None else noted
    return run_jobs(
        some_job,
        jobs,
        device="cpu",
        deadline=time.time() + seconds,
        job_seconds=2.5,
        note=lambda now: found.append(len(now.results)),
    )


@pytest.mark.usefixtures("forked_workers")
def test_a_job_that_takes_its_process_along_is_noted_and_the_rest_done() -> None:
    noted: list[int] = []
    names = ("alone", "a", "breaks", "crashes", "b", "loses", "hangs", "c")
    found = jobs_in(*names, noted=noted)
    assert list(found.results) == ["alone", "a", "b", "loses", "c"] and not found.skipped
    assert found.results["a"][:2] == ["a", "cpu"]
    process = {name: result[2] for name, result in found.results.items()}
    assert len(set(process.values())) == 4 and process["b"] == process["loses"]
    assert found.failed["breaks"] == "ValueError: no such kernel"
    assert found.failed["crashes"].startswith("killed by SIGKILL: an illegal address")
    assert found.failed["hangs"].startswith("exit status 1: Timeout")
    assert noted == [1, 2, 2, 2, 3, 4, 4, 5]


def test_no_job_begins_after_the_deadline() -> None:
    assert jobs_in("a", "b", seconds=0).skipped == ["a", "b"]


# -- the time line ------------------------------------------------------------------------------


def test_a_trace_says_what_ran(tmp_path: Path) -> None:
    events = take_trace(
        lambda: torch.ones(30, 30) @ torch.ones(30, 30), CPU, tmp_path / "t" / "a.json"
    )
    assert any(event["name"] == "aten::mm" for event in events)
    assert events == sorted(events, key=lambda event: event["ts"])
    assert "traceEvents" in json.loads((tmp_path / "t" / "a.json").read_text())


def test_kernels_are_told_from_what_launched_them(tmp_path: Path) -> None:
    def event(name: str, kind: str, start: float, length: float, row: int = 7) -> dict[str, Any]:
        return {"ph": "X", "cat": kind, "name": name, "tid": row, "ts": start, "dur": length}

    events = [
        event("void gemm<128, 64>(Params)", "kernel", 10, 4),
        event("cudaGraphLaunch", "cuda_runtime", 1, 2),
        event("Memset (Device)", "gpu_memset", 8, 1, row=9),
        event("void gemm<64, 64>(Params)", "kernel", 12, 6, row=9),
        {"ph": "i", "cat": "kernel", "name": "mark", "ts": 0},
    ]
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": events}))
    found = read_events(tmp_path / "t.json", ("kernel", "gpu_memset"))
    assert [one["ts"] for one in found] == [8, 10, 12]
    assert busy_microseconds(found) == 1 + 8  # 8 to 9, and 10 to 18 by two kernels that overlap
    assert microseconds_by_kernel(found) == {"gemm": 10, "Memset": 1}
    nested = [event("void a::(anonymous namespace)::f<3>(int)", "kernel", 0, 5)]
    assert microseconds_by_kernel(nested) == {"a::f": 5}
    assert busy_microseconds([*nested, event("b", "kernel", 1, 2)]) == 5


# -- the jobs -----------------------------------------------------------------------------------


def tiny(jobs: Jobs) -> Jobs:
    """The very jobs of a GPU, at a size for a CPU, which is one batch size for all; the fused LSTM
    stands in for the persistent."""
    smaller = {"data": {"images": 12, "feature_dim": 6}, "repeats": 1, "steps": 20}
    smaller |= {"epochs": 2, "dev_images": 4}
    sizes = {"hidden_size": 8, "batch_size": 16}
    found: Jobs = {
        name: {key: smaller.get(key, value) for key, value in job.items()}
        | {"sizes": {**job["sizes"], **sizes}}
        for name, job in jobs.items()
        if " B " not in name or name.endswith("B 128")
    }
    made: Jobs = json.loads(json.dumps(found).replace("persistent", "fused"))
    return made


@pytest.mark.slow
def test_every_job_runs_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_epoch, "JOB_SECONDS", 600.0)  # other tests may run beside it
    jobs, noted = tiny(epoch_jobs(tmp_path)), list[str]()
    part = run_epoch_stage(
        jobs, seconds=1200, device="cpu", note=lambda now: noted.append(now["summary"])
    )
    assert part["status"] == "passed", part
    assert json.loads(json.dumps(part)) == part
    assert part["summary"].startswith(f"{len(jobs)} jobs done; ") and len(noted) == len(jobs)
    assert noted[0].startswith("1 jobs done") and not part["skipped"]
    figures = part["figures"]
    names = {one["implementation"] for one in figures if one["what"] == "an epoch"}
    assert names == {PLAIN, "eager torch", "eager fused", "graph torch", "graph fused"}
    shares = [one for one in figures if one["what"] == "share of the roofline"]
    assert len(shares) == 2 * 2 + 3 and all(0 < one["median"] < 2 for one in shares)
    clock = {one["implementation"]: one["median"] for one in figures if "scored" in one["what"]}
    assert clock["warm"] < clock["cold"]  # which had torch to import
    assert {"BLEU-4", "CIDEr-D"} <= set(part["details"]["run"]["last scores"])
    for name in ("graph-fused", "graph-torch"):
        assert (tmp_path / f"{name}-bfloat16-B16.trace.json").exists()
    table = "\n".join(format_jobs("epoch", part))
    assert "losses of graph fused apart from those of eager fused, 20 steps" in table


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_implementations_take_the_same_steps(dtype: str) -> None:
    one = training(dtype=dtype)
    names = (PLAIN, "eager reference", "graph reference", "graph fused")
    losses = {name: one.build(name).losses(12) for name in names}
    apart = 1e-5 if dtype == "float32" else 2e-2
    for name, curve in losses.items():
        np.testing.assert_allclose(curve, losses[PLAIN], atol=apart, err_msg=name)
    assert losses[PLAIN][-1] < losses[PLAIN][0]


def test_one_that_cannot_start_leaves_the_others() -> None:
    found = time_epochs(training(), names=["eager persistent", "graph reference"], repeats=1)
    assert "is for CUDA devices" in found["absent"]["eager persistent"]
    names = {one["implementation"] for one in found["figures"]}
    assert names == {"graph reference", "measured rates"}
    part = judge(JobResults({"graphs": found}), {})
    assert part["status"] == "failed" and list(part["failed"]) == ["graphs, eager persistent"]


def test_losses_that_differ_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __init__(self, name: str) -> None:
            self.worse = 0.01 if name == OURS else 0.0

        def losses(self, count: int) -> list[float]:
            return [1.0] * (count - 1) + [1.0 + self.worse]

    monkeypatch.setattr(Training, "build", lambda self, name: Wrong(name))
    for dtype, met in (("tf32", False), ("bfloat16", True)):
        found = compare_losses(training(dtype=dtype), names=[PLAIN, OURS], steps=5)
        assert found["requirements"][0]["met"] is met
