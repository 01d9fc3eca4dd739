"""The epoch suite of `make gpu-check` without a GPU: the same code at a tiny size, uncaptured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import epoch_floor
from benchmarks import epoch_jobs as epoch_jobs_module
from benchmarks.epoch_data import draw_captions
from benchmarks.epoch_floor import step_floor
from benchmarks.epoch_jobs import (
    _asked_of_graphs,
    build_passes,
    compare_losses,
    time_passes,
)
from benchmarks.epoch_passes import PLAIN, PassSettings
from benchmarks.gpu_epoch import (
    CUDNN,
    OURS,
    Jobs,
    _judged,
    epoch_jobs,
    format_epoch,
    run_epoch_stage,
    timed_run,
)
from benchmarks.gpu_stages import Checkout
from benchmarks.job_process import Found, run_jobs
from benchmarks.lengths import LONGEST, MEAN
from benchmarks.processes import python_path
from benchmarks.record import Axes
from benchmarks.several_runs import steps_at_once
from benchmarks.timeline import (
    Bar,
    busy_microseconds,
    draw_timeline,
    kind_of,
    microseconds_by_kind,
    read_bars,
    take_trace,
)
from benchmarks.timing import Spread

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
    assert 1e7 < epoch_floor.bytes_a_second(CPU) < 1e13
    slow = epoch_floor.seconds_a_call(lambda: time.sleep(0.001), CPU, calls=2, repeats=2)
    assert 0.001 <= slow < 0.1


# -- jobs in a process of their own -------------------------------------------------------------


JOBS = """
import os, signal, sys, time
from pathlib import Path
from benchmarks import job_process

def do(device, what):
    if what == "breaks":
        raise ValueError("no such kernel")
    if what == "crashes":
        print("an illegal address", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        time.sleep(60)
    if what == "slow":
        time.sleep(1.5)
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
        patch.setenv("PYTHONPATH", f"{folder}:{python_path()}")
        return run_jobs(
            checkout, "some_jobs", {name: {"what": name} for name in names}, device="cpu",
            deadline=time.time() + seconds, job_seconds=2.5,
            note=lambda now: found.append(len(now.results)),
        )  # fmt: skip


def test_a_job_that_takes_its_process_along_is_noted_and_the_rest_done(tmp_path: Path) -> None:
    noted: list[int] = []
    names = ("a", "breaks", "crashes", "b", "loses", "slow", "hangs", "c")
    found = jobs_in(tmp_path, *names, noted=noted)
    assert list(found.results) == ["a", "b", "loses", "slow", "c"] and not found.skipped
    assert found.results["a"][:2] == ["a", "cpu"]
    process = {name: result[2] for name, result in found.results.items()}
    assert len(set(process.values())) == 4 and process["b"] == process["loses"]
    assert found.failed["breaks"] == "ValueError: no such kernel"
    assert found.failed["crashes"].startswith("killed by SIGKILL: an illegal address")
    assert found.failed["hangs"].startswith("exit status 1: Timeout")
    assert noted == sorted(noted) and {1, 3, 4, 5} <= set(noted)  # 4 while the next one hangs


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


# -- the jobs -----------------------------------------------------------------------------------

TINY = {"images": 12, "feature_dim": 6}


def tiny(jobs: Jobs) -> Jobs:
    """The very jobs of a GPU, at a size for a CPU; the fused LSTM stands in for the persistent."""
    smaller = {"sizes": TINY, "hidden_size": 8, "repeats": 1, "steps": 20, "looks": 2, "passes": 2,
               "dev_images": 4, "counts": [1, 2], "seconds": 0.3}  # fmt: skip
    text = json.dumps(
        {
            name: {**job, "batch_size": 16, **{k: v for k, v in smaller.items() if k in job}}
            | {"hidden_size": 8}
            for name, job in jobs.items()
        }
    )
    found: Jobs = json.loads(text.replace("persistent", "fused"))
    return found


def test_every_job_runs_and_is_recorded(tmp_path: Path) -> None:
    groups = [tiny(timed_run()), tiny(epoch_jobs(tmp_path))]
    noted: list[str] = []
    part = run_epoch_stage(
        Checkout(ROOT, sys.executable, "9.0"), groups, seconds=120, device="cpu",
        note=lambda now: noted.append(now["summary"]),
    )  # fmt: skip
    assert part["status"] == "passed", part
    assert json.loads(json.dumps(part)) == part
    jobs = sum(map(len, groups))
    assert part["summary"].startswith(f"{jobs} jobs done; ") and len(noted) >= 2
    assert noted[0].startswith("1 jobs done") and not part["skipped"]
    sides = {one["side"] for one in part["figures"] if one["what"] == "a pass"}
    assert sides == {
        "plain PyTorch", "eager torch", "eager fused", "graph torch", "graph fused"
    }  # fmt: skip
    rates = {one["what"]: one["median"] for one in part["figures"] if one["unit"] == "1/s"}
    assert set(rates) == {"steps of 1 runs at once", "steps of 2 runs at once"}
    assert min(rates.values()) > 0
    shares = [one for one in part["figures"] if one["what"] == "share of the floor"]
    assert len(shares) == 6 * 2 + 4 * 3 and all(0 < one["median"] < 2 for one in shares)
    clock = {one["side"]: one["median"] for one in part["figures"] if "each scored" in one["what"]}
    assert clock["warm"] < clock["cold"]  # which had torch to import
    assert {"BLEU-4", "CIDEr-D"} <= set(part["details"]["run"]["scores"][-1])
    assert len(part["details"]["run"]["scores"]) == 2
    for name in ("graph-fused", "graph-torch"):
        assert "<rect" in (tmp_path / f"{name}-bfloat16-B16.html").read_text()
        assert (tmp_path / f"{name}-bfloat16-B16.trace.json").exists()
    table = "\n".join(format_epoch(part))
    assert "losses of graph fused apart from those of eager fused, 20 steps" in table


def test_a_run_that_cannot_begin_is_said_and_the_others_are_ended() -> None:
    settings = {
        "device": "cpu", "sizes": TINY, "seconds": 0.1, "side": "graph persistent",
        "batch_size": 16, "hidden_size": 8, "dtype": "float32",
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="a run ended with 1 before it was ready"):
        steps_at_once(2, settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_sides_take_the_same_steps(dtype: str) -> None:
    data = draw_captions(12, 6, seed=0)
    settings: dict[str, Any] = {"batch_size": 16, "hidden_size": 8, "dtype": dtype}
    losses = {
        side: build_passes(PassSettings(side=side, **settings), data, CPU).losses(12)
        for side in (PLAIN, "eager reference", "graph reference", "graph fused")
    }
    apart = 1e-5 if dtype == "float32" else 2e-2
    for side, curve in losses.items():
        np.testing.assert_allclose(curve, losses[PLAIN], atol=apart, err_msg=side)
    assert losses[PLAIN][-1] < losses[PLAIN][0]


def test_a_side_that_cannot_start_leaves_the_others() -> None:
    data = draw_captions(12, 6, seed=0)
    found = time_passes(
        data, CPU, sides=["eager persistent", "graph reference"], repeats=1, batch_size=16,
        hidden_size=8,
    )  # fmt: skip
    assert "is for CUDA devices" in found["absent"]["eager persistent"]
    assert {one["side"] for one in found["figures"]} == {"graph reference", "measured rates"}
    part = _judged(Found(results={"graphs": found}))
    assert part["status"] == "failed" and list(part["failed"]) == ["graphs, eager persistent"]


def test_losses_that_differ_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __init__(self, side: str) -> None:
            self.worse = 0.01 if side == OURS else 0.0

        def losses(self, count: int) -> list[float]:
            return [1.0] * (count - 1) + [1.0 + self.worse]

    monkeypatch.setattr(epoch_jobs_module, "build_passes", lambda one, *_: Wrong(one.side))
    data = draw_captions(12, 6, seed=0)
    for dtype, met in (("tf32", False), ("bfloat16", True)):
        found = compare_losses(data, CPU, sides=[PLAIN, OURS], steps=5, batch_size=4, dtype=dtype)
        assert found["requirements"][0]["met"] is met


def test_what_is_asked_of_the_graphs() -> None:
    taken = {CUDNN: Spread((0.3, 0.3)), OURS: Spread((0.1, 0.2))}

    def asked(batch: int, dtype: str = "bfloat16", hidden: int = 512) -> list[tuple[float, bool]]:
        axes: Axes = {"dtype": dtype, "H": hidden, "B": batch}
        return [(one.spread.median, one.met) for one in _asked_of_graphs(taken, axes)]

    (a_pass,) = asked(128)
    assert a_pass == (pytest.approx(0.15), False)
    (speed,) = asked(64)
    assert speed == (pytest.approx(2.25), True)  # each repeat's own ratio: 3 and 1.5
    assert not asked(256) and not asked(64, "tf32") and not asked(64, hidden=8)
    assert not _asked_of_graphs({PLAIN: taken[OURS]}, {"dtype": "bfloat16", "H": 512, "B": 64})


def test_the_stage_fails_where_a_job_does() -> None:
    good = {"figures": [], "requirements": [{"met": True}]}
    assert _judged(Found(results={"a": good}))["status"] == "passed"
    missed = {"figures": [], "requirements": [{"met": False}]}
    part = _judged(Found(results={"a": good, "b": missed}, skipped=["c"]))
    assert part["status"] == "failed"
    assert part["summary"] == ("2 jobs done, 1 left out for want of time; 1 of 2 requirements met")
    nothing = {"figures": [], "requirements": []}
    broken = _judged(Found(results={"a": nothing}, failed={"b": "CUDA error\nmore"}))
    assert broken["status"] == "failed" and format_epoch(broken) == ["FAILED b: CUDA error"]
    assert _judged(Found())["status"] == "failed" and format_epoch({}) == []


def test_a_process_knows_its_age() -> None:
    program = "from benchmarks.job_process import process_age\nprint(process_age())\n"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    age, taken = float(done.stdout), time.monotonic() - started
    assert 0.3 * taken < age < taken + 0.1  # it ends soon after it has told its age
