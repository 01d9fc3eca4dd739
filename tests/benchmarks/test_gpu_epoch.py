"""The epoch suite of `make gpu-check` without a GPU: the same code at a tiny size, uncaptured."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.benchmarks import epoch_floor
from captioner.benchmarks.epoch_data import draw_captions
from captioner.benchmarks.epoch_floor import step_floor
from captioner.benchmarks.gpu_stages import Checkout
from captioner.benchmarks.job_process import Found, run_jobs
from captioner.benchmarks.lengths import LONGEST, MEAN
from captioner.benchmarks.timeline import (
    Bar,
    busy_microseconds,
    draw_timeline,
    kind_of,
    microseconds_by_kind,
    read_bars,
    take_trace,
)

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


# -- what is measured on ------------------------------------------------------------------------


def test_drawn_captions_are_flickr8ks_likeness() -> None:
    data = draw_captions(400, 8, seed=1)
    assert data.features.shape == (400, 1, 8) and data.features.dtype == torch.float32
    assert abs(float(data.features.mean())) < 0.1 and abs(float(data.features.std()) - 1) < 0.1
    lengths = data.dataset.store.lengths - 1
    assert len(lengths) == 2000 and int(lengths.max()) == LONGEST
    assert abs(float(lengths.float().mean()) - MEAN) < 0.3
    assert data.tokens == int(lengths.sum()) + 2000
    assert len(data.order(128, seed=0)) == 16


def test_the_floor_counts_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []

    def counted(call: Any, device: torch.device, **_: Any) -> float:
        taken.append(tuple(call().shape))
        return 1.0

    monkeypatch.setattr(epoch_floor, "seconds_a_call", counted)
    monkeypatch.setattr(epoch_floor, "bytes_a_second", lambda device: 4.0)
    sizes: dict[str, Any] = {
        "batch": 3, "tokens": 20, "hidden": 4, "vocab_size": 7, "feature_dim": 5, "device": CPU
    }  # fmt: skip
    floor = step_floor(dtype=torch.float32, **sizes)
    # Three products of each layer, but for the image projection's: its input has no gradient.
    assert taken == [
        (3, 4), (4, 5), (23, 16), (16, 4), (23, 4), (20, 16), (16, 4), (20, 4), (20, 7), (7, 4),
        (20, 4),
    ]  # fmt: skip
    weights = 4 * 5 + 4 * 4 * 4 * 2 + 7 * 4 * 2
    assert floor.products == 11 and floor.optimizer == 7 * weights
    assert floor.seconds == floor.products + floor.optimizer
    half = step_floor(dtype=torch.bfloat16, **sizes)
    assert half.optimizer == 7.5 * weights


def test_rates_are_measured() -> None:
    assert 1e7 < epoch_floor.bytes_a_second(CPU, copied=1 << 20) < 1e13
    slow = epoch_floor.seconds_a_call(lambda: time.sleep(0.001), CPU, calls=2, repeats=2)
    assert 0.001 <= slow < 0.1


# -- jobs in a process of their own -------------------------------------------------------------


JOBS = """
import os, signal, sys, time
from pathlib import Path
from captioner.benchmarks import job_process

def do(device, what):
    if what == "breaks":
        raise ValueError("no such kernel")
    if what == "crashes":
        print("an illegal address", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        time.sleep(60)
    if what == "loses":
        job_process._works = lambda device: False
    return [what, str(device), os.getpid()]

sys.exit(job_process.do_jobs(do, Path(sys.argv[1]), Path(sys.argv[2])))
"""


def jobs_in(
    folder: Path, *names: str, seconds: float = 60, noted: list[int] | None = None
) -> Found:
    (folder / "some_jobs.py").write_text(JOBS)
    checkout = Checkout(folder, sys.executable, "9.0")
    found: list[int] = [] if noted is None else noted
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{ROOT / 'src'}")
        return run_jobs(
            checkout, "some_jobs", {name: {"what": name} for name in names}, device="cpu",
            deadline=time.time() + seconds, job_seconds=1.0,
            note=lambda now: found.append(len(now.results)),
        )  # fmt: skip


def test_a_job_that_takes_its_process_along_is_noted_and_the_rest_done(tmp_path: Path) -> None:
    noted: list[int] = []
    found = jobs_in(tmp_path, "a", "breaks", "crashes", "b", "loses", "hangs", "c", noted=noted)
    assert list(found.results) == ["a", "b", "loses", "c"] and not found.skipped
    assert found.results["a"][:2] == ["a", "cpu"]
    process = {name: result[2] for name, result in found.results.items()}
    assert len(set(process.values())) == 3 and process["b"] == process["loses"]
    assert found.failed["breaks"] == "ValueError: no such kernel"
    assert found.failed["crashes"].startswith("killed by SIGKILL: an illegal address")
    assert found.failed["hangs"].startswith("exit status 1: Timeout")
    assert noted == [1, 3, 3, 4]


def test_no_job_begins_after_the_deadline(tmp_path: Path) -> None:
    assert jobs_in(tmp_path, "a", "b", seconds=0).skipped == ["a", "b"]


def test_a_process_that_cannot_start_is_not_tried_for_ever(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, sys.executable, "9.0")
    found = run_jobs(
        checkout, "no_such_module", {"a": {}}, device="cpu", deadline=time.time() + 30,
        job_seconds=1,
    )  # fmt: skip
    assert found.skipped == ["a"] and "no_such_module" in found.failed["the process"]


# -- the time line ------------------------------------------------------------------------------


def test_a_traces_bars_are_drawn(tmp_path: Path) -> None:
    bars = take_trace(
        lambda: torch.ones(30, 30) @ torch.ones(30, 30), CPU, tmp_path / "t" / "a.json"
    )
    assert any(bar.name == "aten::mm" for bar in bars)
    assert bars == sorted(bars, key=lambda bar: bar.start)
    page = draw_timeline(bars, "a <product>")
    assert page.count("<rect") == len(bars)
    assert "a &lt;product&gt;" in page and "aten::mm" in page


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
    bars = read_bars(tmp_path / "t.json", ("kernel", "gpu_memset"))
    assert [bar.start for bar in bars] == [8, 10, 12]
    assert busy_microseconds(bars) == 1 + 8  # 8 to 9, and 10 to 18 by two kernels that overlap
    assert microseconds_by_kind(bars) == {"gemm": 10, "Memset": 1}
    page = draw_timeline(bars, "step")
    assert "10.0 us from first to last, 9.0 us of them busy (90%)" in page
    assert 'height="52"' in page  # two streams


def test_an_empty_trace_is_a_page_too() -> None:
    assert "0 bars" in draw_timeline([], "nothing")
    assert kind_of("void a::(anonymous namespace)::f<3>(int)") == "a::f"
    assert busy_microseconds([Bar("a", "0", 0, 5), Bar("b", "0", 1, 2)]) == 5
