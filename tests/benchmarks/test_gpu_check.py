"""`make gpu-check` without a GPU: its stages on real processes, its record after every one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import gpu_check, gpu_jobs, gpu_stages, lstm_implementations
from benchmarks.gpu_jobs import gpu_grid, judge, run_features_stage, run_lstm_stage
from benchmarks.gpu_stages import Checkout, build_extension, read_summary, run_tests
from benchmarks.lstm import kernel_times
from benchmarks.lstm_implementations import BOTH, Cell
from benchmarks.lstm_small_case import run_small_case
from benchmarks.worker import JobResults, run_process, shortened
from captioner.errors import CaptionerError
from captioner.files import read_json
from captioner.ops.algorithms import check_table, nearest

ROOT = Path(__file__).parents[2]
HERE = Checkout(ROOT, sys.executable, "9.0")
HEAD = {"machine": {"device": "no GPU", "driver": "none"}, "commit": "unknown"}
TINY = [Cell("equal", "float32", 4, batch) for batch in (1, 2, 3)]


def passing(note: Any) -> dict[str, Any]:
    return {"status": "passed", "summary": "well"}


def program(path: Path, source: str) -> str:
    """An executable Python file."""
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return str(path)


# -- the command --------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path: Path, run_script: Any) -> None:
    done = run_script(tmp_path, "gpu_check", "--out", "record.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: gpu-check needs a CUDA GPU, and PyTorch")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
    assert not list(tmp_path.iterdir())


def test_make_runs_it_with_a_bare_interpreter(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make here")
    done = subprocess.run(
        [
            make,
            "-n",
            "-C",
            str(ROOT),
            "gpu-check",
            "PYTHON=python9",
            "GPU=--minutes 4",
            f"VENV={tmp_path}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if "make" not in line]
    assert lines == ["PYTHONPATH=src python9 scripts/gpu_check.py --minutes 4"]


def test_a_failing_stage_is_recorded_and_the_later_ones_run(tmp_path: Path) -> None:
    def breaks(note: Any) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    out = tmp_path / "folder" / "record.json"
    stages = {"build": passing, "tests": breaks, "sanitizer": passing}
    record = gpu_check.run_check(stages, head=HEAD, out=out)
    assert read_json(out) == record and record["finished"]
    status = {name: part["status"] for name, part in record["stages"].items()}
    assert status == {"build": "passed", "tests": "failed", "sanitizer": "passed"}
    assert record["stages"]["tests"]["summary"] == "RuntimeError: no such kernel"
    text = gpu_check.format_check(record)
    assert "  tests: failed: RuntimeError: no such kernel" in text
    assert "no GPU, driver none, commit unknown" in text


def test_an_interruption_keeps_what_was_finished(tmp_path: Path) -> None:
    out = tmp_path / "record.json"

    def interrupted(note: Any) -> dict[str, Any]:
        assert read_json(out)["stages"]["build"]["status"] == "passed"
        note({"status": "passed", "summary": "half of it"})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu_check.run_check({"build": passing, "benchmark": interrupted}, head=HEAD, out=out)
    record = read_json(out)
    assert not record["finished"]
    assert record["stages"]["build"]["summary"] == "well"
    assert record["stages"]["benchmark"] == {"status": "running", "summary": "half of it"}


def test_a_record_that_cannot_be_written_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CaptionerError, match="cannot write"):
        gpu_check.run_check({"build": passing}, head=HEAD, out=tmp_path / "file" / "x.json")


def test_the_head_ties_a_record_to_its_sources(tmp_path: Path) -> None:
    head = gpu_check.record_head(ROOT, HEAD["machine"])
    assert json.loads(json.dumps(head)) == head
    assert head["versions"]["torch"] == torch.__version__
    assert gpu_check.commit_of(tmp_path) == "unknown"
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    kernel = tmp_path / "csrc" / "cuda" / "kernel.cu"
    digests = set()
    for text in ("one", "two"):
        kernel.write_text(text)
        digests.add(gpu_check.digest_of_sources(tmp_path))
    assert len(digests) == 2 and len(digests.pop()) == 64
    out = gpu_check.default_out("NVIDIA H100 80GB HBM3")
    assert out.parent == ROOT / "benchmarks" / "results" / "gpu"
    assert out.name.startswith("nvidia-h100-80gb-hbm3-20") and out.suffix == ".json"


def test_the_commit_is_gits(tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git here")

    def run(*arguments: str) -> None:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
        subprocess.run([git, "-C", str(tmp_path), *settings, *arguments], check=True)

    run("init", "-q")
    (tmp_path / "file").write_text("one")
    run("add", "file")
    run("commit", "-q", "-m", "one")
    commit = gpu_check.commit_of(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert gpu_check.commit_of(tmp_path) == f"{commit}, changed"


# -- build and tests ----------------------------------------------------------------------------


def test_the_build_gets_its_environment_and_its_log_is_kept(tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text(
        "import os, sys\n"
        "print(sys.argv[1:], os.environ['CAPTIONER_CUDA'], os.environ['TORCH_CUDA_ARCH_LIST'])\n"
        "sys.exit('nvcc: not found')\n"
    )
    part = build_extension(Checkout(tmp_path, sys.executable, "9.0a"))
    assert (part["status"], part["summary"]) == ("failed", "the build: exit status 1")
    assert "['build_ext', '--inplace', '--force'] 1 9.0a" in part["log"]
    assert "nvcc: not found" in part["log"]


def test_a_build_without_the_backend_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "setup.py").touch()
    checkout = Checkout(tmp_path, sys.executable, "9.0")
    monkeypatch.setattr(gpu_stages, "ASK_FOR_FUSED", "raise ValueError('not for CUDA')")
    part = build_extension(checkout)
    assert part["status"] == "failed"
    assert part["summary"] == "built, but not there: ValueError: not for CUDA"
    monkeypatch.setattr(gpu_stages, "ASK_FOR_FUSED", "pass")
    assert build_extension(checkout)["status"] == "passed"


def test_tests_are_counted_and_failures_named(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('device', ['cpu', 'cuda'])\n"
        "def test_one(device): assert device\n"
        "def test_wrong_on_cuda(): assert 1 == 2, 'one is not two'\n"
        "@pytest.mark.skip(reason='no cuda')\n"
        "def test_skipped_on_cuda(): pass\n"
    )
    (tmp_path / "test_skips.py").write_text("import pytest\npytest.skip(allow_module_level=True)\n")
    (tmp_path / "test_drawn.py").write_text("import hypothesis\n")
    checkout = Checkout(tmp_path, sys.executable, "9.0")
    tests = (("test_some.py", "cuda"), ("test_skips.py", None), ("test_absent.py", None))
    part = run_tests(checkout, tests)
    assert (part["passed"], part["failed"], part["skipped"]) == (1, 1, 2)
    assert part["status"] == "failed"
    assert part["summary"] == (
        "1 passed, 1 failed, 2 skipped; not right: test_some.py, test_skips.py, test_absent.py"
    )
    some = part["files"]["test_some.py"]
    (failure,) = some["failures"]
    assert failure.startswith("FAILED test_some.py::test_wrong_on_cuda")
    assert "one is not two" in failure
    assert some["why"] == "exit status 1" and "one is not two" in some["output"]
    assert "no cuda" in some["skip_reasons"][0]
    assert part["files"]["test_absent.py"]["why"] == "there is no such file"


def test_a_file_that_needs_hypothesis_is_left_out_where_it_is_absent(tmp_path: Path) -> None:
    (tmp_path / "test_drawn.py").write_text("from hypothesis import given\n")
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError('hypothesis')\n")
    python = program(
        tmp_path / "python",
        "import os, sys\n"
        f"os.environ['PYTHONPATH'] = {str(tmp_path)!r}\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n",
    )
    part = run_tests(Checkout(tmp_path, python, "9.0"), (("test_drawn.py", None),))
    assert part["status"] == "passed"
    assert part["summary"].endswith("not run: test_drawn.py: hypothesis is not installed")


def test_a_crash_leaves_no_report(tmp_path: Path) -> None:
    (tmp_path / "test_crash.py").write_text(
        "import os, signal\ndef test_one(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    part = run_tests(Checkout(tmp_path, sys.executable, "9.0"), (("test_crash.py", None),))
    assert part["files"]["test_crash.py"]["why"] == "killed by SIGKILL"
    assert read_summary("")["passed"] == 0


# -- the sanitizer ------------------------------------------------------------------------------


def test_without_a_sanitizer_the_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_stages, "find_in_toolkit", lambda program: None)
    part = gpu_stages.run_sanitizer(HERE)
    assert part == {"status": "skipped", "summary": "compute-sanitizer is not installed"}


def test_the_sanitizer_is_found_in_cudas_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    there = program(tmp_path / "cuda" / "bin" / "compute-sanitizer", "")
    assert gpu_stages.find_in_toolkit("compute-sanitizer") == there


def test_what_the_sanitizer_finds_fails_the_stage(tmp_path: Path) -> None:
    tool = program(
        tmp_path / "compute-sanitizer",
        "import os, sys\n"
        "assert sys.argv[3:5] == ['--error-exitcode', '9'] and 'bfloat16:plain' in sys.argv\n"
        "assert os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\n"
        "wrong = sys.argv[2] == 'racecheck'\n"
        "print(f'========= ERROR SUMMARY: {int(wrong)} errors')\n"
        "sys.exit(9 * wrong)\n",
    )
    part = gpu_stages.run_sanitizer(HERE, tool)
    assert part["status"] == "failed"
    assert (
        part["summary"] == "memcheck: ERROR SUMMARY: 0 errors; racecheck: ERROR SUMMARY: 1 errors; "
        "synccheck: ERROR SUMMARY: 0 errors"
    )
    assert part["tools"]["memcheck"]["status"] == "passed"


NCU = """==PROF== Connected
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","forward_steps(captioner::cuda::Pass<float>)","lts__t_bytes.sum","byte","1,048,576"
"0","7","forward_steps(captioner::cuda::Pass<float>)","gpu__time_duration.sum","ns","52,000"
"1","7","backward_steps(...)","lts__t_bytes.sum","byte","2,000"
"1","7","backward_steps(...)","another","byte","3"
"""


def test_counters_are_read_from_the_profilers_table() -> None:
    forward = {
        "kernel": "forward_steps",
        "bytes through the second-level cache": 1048576.0,
        "nanoseconds": 52000.0,
    }
    backward = {"kernel": "backward_steps", "bytes through the second-level cache": 2000.0}
    assert gpu_stages.read_counters(NCU) == [forward, backward]
    assert gpu_stages.read_counters("==ERROR== nothing") == []


def test_latencies_are_read_from_the_programs_lines() -> None:
    one = {
        "algorithm": "persistent",
        "blocks": 16,
        "groups": 8,
        "barrier_us": 0.91,
        "exchange_us": 1.2,
    }
    part = gpu_stages.judge_latency(0, json.dumps(one) + "\n")
    assert part["status"] == "passed" and part["figures"] == [one]
    assert part["summary"] == "persistent, 16 blocks: barrier 0.91 us, exchange 1.20 us"
    assert gpu_stages.judge_latency(1, json.dumps(one))["status"] == "failed"
    assert gpu_stages.judge_latency(0, "")["status"] == "failed"


@pytest.mark.parametrize("stage", [gpu_stages.run_latency, gpu_stages.run_counters])
def test_a_stage_without_its_program_is_skipped_aloud(
    stage: Callable[[Checkout], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_stages, "find_in_toolkit", lambda program: None)
    part = stage(HERE)
    assert part["status"] == "skipped" and "is not installed" in part["summary"]


def test_a_record_fills_the_table_of_algorithms(tmp_path: Path) -> None:
    cell = {"hidden_size": 512, "batch_size": 64, "milliseconds": {"plain": 3.0, "cluster": 1.0}}
    table, record = tmp_path / "paths.json", tmp_path / "record.json"
    table.write_text(json.dumps({"old": {"float16": [cell]}, "new": {}}))
    measured = {"new": {"bfloat16": [cell]}}
    record.write_text(json.dumps({"stages": {"benchmark": {"algorithms": measured}}}))
    gpu_check.fill_algorithms(record, table)
    assert json.loads(table.read_text()) == {
        "old": {"float16": [cell]},
        "new": {"bfloat16": [cell]},
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_small_case_compares_with_the_reference(dtype: str) -> None:
    assert run_small_case("cpu", dtype, backend="reference") == 0
    assert run_small_case("cpu", dtype, backend="torch") < 0.05
    assert run_small_case("cpu", dtype, backend="reference", models=3) == 0


# -- the benchmark ------------------------------------------------------------------------------


@pytest.mark.usefixtures("forked_workers")
def test_the_benchmark_measures_every_cell_and_notes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_jobs, "CELL_SECONDS", 600.0)  # other tests may run beside it
    noted: list[int] = []
    wrong = dataclasses.replace(TINY[0], dtype="float31")
    part = run_lstm_stage(
        seconds=300,
        cells=[TINY[0], wrong, TINY[1]],
        device="cpu",
        note=lambda part: noted.append(len(part["skipped"])),
    )
    assert [one["B"] for one in part["settings"]["batches"]] == [1, 2]
    assert part["failed"][str(wrong)] == "KeyError: 'float31'"
    absent = "is for CUDA devices"  # the kernels, which are missed aloud
    assert absent in part["failed"][f"{TINY[0]}, plain"]
    assert part["status"] == "failed" and "2 jobs done" in part["summary"]
    assert not part["skipped"] and noted == sorted(noted, reverse=True) and len(noted) == 3
    assert "H 4, B 2" in "\n".join(gpu_jobs.format_jobs("benchmark", part))


def test_no_cell_is_begun_after_the_deadline() -> None:
    part = run_lstm_stage(seconds=0, cells=TINY, device="cpu")
    assert part["status"] == "failed" and part["summary"].endswith("no time was left")
    assert part["skipped"] == [str(cell) for cell in TINY]


def test_the_verdict_on_a_benchmark() -> None:
    what = "forward and backward, speed to torch"
    axes = {"lengths": "equal", "dtype": "float32", "H": 4, "B": 1}

    def cell(median: float, **other: Any) -> dict[str, Any]:
        figure = {"what": what, "implementation": "persistent", "median": median, "unit": "times"}
        figures = [{**figure, "axes": axes}]
        return {"figures": figures, "requirements": [{"met": True}], "batch": {}, **other}

    good = gpu_jobs.judge_cells(JobResults({"a": cell(2.0), "b": cell(8.0)}), "some GPU")
    assert good["status"] == "passed" and good["algorithms"] == {"some GPU": {}}
    assert good["summary"] == "2 jobs done; 2 of 2 requirements met"


def test_a_stage_fails_where_a_job_does() -> None:
    good = {"figures": [], "requirements": [{"met": True}]}
    assert judge(JobResults({"a": good}), {})["status"] == "passed"
    missed = {"figures": [], "requirements": [{"met": False}]}
    part = judge(JobResults({"a": good, "b": missed}, skipped=["c"]), {})
    assert part["status"] == "failed"
    assert part["summary"] == "2 jobs done, 1 left out for want of time; 1 of 2 requirements met"
    absent = judge(JobResults({"a": {**good, "absent": {"fused": "not built"}}}), {})
    assert absent["status"] == "failed" and absent["failed"] == {"a, fused": "not built"}
    broken = judge(JobResults({"a": good}, failed={"b": "CUDA error\nmore"}), {})
    assert broken["status"] == "failed"
    assert gpu_jobs.format_jobs("epoch", broken) == ["FAILED b: CUDA error"]
    assert judge(JobResults(), {})["status"] == "failed"
    assert gpu_jobs.format_jobs("epoch", {}) == []


def test_the_measured_times_are_the_operators_table() -> None:
    def figure(name: str, median: float, batch: int, **other: Any) -> dict[str, Any]:
        axes = {"lengths": "flickr8k", "dtype": "bfloat16", "H": 512, "B": batch}
        one = {"what": BOTH, "unit": "ms", "implementation": name, "median": median}
        return {**one, "axes": axes, **other}

    equal = {**figure("", 0, 64)["axes"], "lengths": "equal"}
    figures = [
        figure("plain", 3.0, 64),
        figure("persistent", 1.0, 64),
        figure("torch", 9.0, 64),
        figure("plain", 5.0, 1024),  # too large for the other
        figure("persistent", 0.1, 64, what="forward"),
        figure("plain", 7.0, 64, axes=equal),
        figure("persistent", 80.0, 64, unit="tokens/s"),
    ]
    table = gpu_jobs.measured_algorithms(figures, "NVIDIA H100")
    times = {"plain": 3.0, "persistent": 1.0}
    cell = {"hidden_size": 512, "batch_size": 64, "milliseconds": times}
    assert table == {"NVIDIA H100": {"bfloat16": [cell]}}
    assert nearest(check_table(table), "NVIDIA H100", torch.bfloat16, 512, 64)[0] == times


@pytest.mark.usefixtures("forked_workers")
def test_both_readers_of_images_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_jobs, "FEATURES_SECONDS", 600.0)  # other tests may run beside it
    part = run_features_stage(
        device="cpu",
        encoder="torchvision/shufflenet_v2_x0_5",
        pictures=6,
        picture_side=64,
        batch_size=4,
    )
    assert json.loads(json.dumps(part)) == part and not part["failed"]
    names = {one["implementation"] for one in part["figures"]}
    assert {"pil", "torchvision", "bare encoder"} < names
    assert (
        "images a second: " in part["summary"]
        and not part["details"]["features"]["settings"]["nvjpeg"]
    )


def test_without_torchvision_the_readers_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_jobs.importlib.util, "find_spec", lambda name: None)
    part = run_features_stage()
    assert part == {"status": "skipped", "summary": "torchvision is not installed"}


def test_persistent_kernels_leave_out_cells_that_they_do_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    def fits(weight: torch.Tensor, batch: int, algorithm: int) -> bool:
        assert algorithm == 1
        asked.append((weight.shape[1], batch))
        return batch < 1000

    operators = SimpleNamespace(lstm_algorithm_fits=fits)
    monkeypatch.setattr(lstm_implementations.torch.ops, "captioner", operators)
    cpu = torch.device("cpu")

    def taken(dtype: str, batch: int, name: str = "persistent") -> bool:
        return lstm_implementations.takes(name, Cell("equal", dtype, 4, batch), cpu)

    assert taken("bfloat16", 64) and not taken("bfloat16", 1024) and not taken("float32", 64)
    assert asked == [(4, 64), (4, 1024)]
    assert taken("float32", 1024, "plain")


class Event(NamedTuple):
    name: str
    device_time_total: float


def test_a_time_step_is_a_kernels_time_through_the_steps() -> None:
    events = [
        Event("void captioner::cuda::forward_steps<float, ByFlags>(...)", 60.0),
        Event("ampere_gemm", 500.0),
        Event("void captioner::cuda::backward_tiles<c10::BFloat16, 16, 4>()", 90.0),
        Event("void captioner::cuda::forward_steps<float, ByFlags>(...)", 66.0),
    ]
    assert kernel_times(events, 30) == {"forward": [2.0, 2.2], "backward": [3.0]}
    assert kernel_times(events[1:2], 30) == {}


def test_the_gpus_grid_begins_with_what_says_most() -> None:
    cells = gpu_grid()
    assert len(set(cells)) == len(cells) == 54
    assert cells[0] == Cell("flickr8k", "bfloat16", 512, 64)
    assert {cell.dtype for cell in cells} == {"bfloat16", "float16", "float32", "tf32"}
    assert {cell.lengths for cell in cells} == {"flickr8k", "equal", "outlier"}


# -- processes ----------------------------------------------------------------------------------


def test_a_process_ends_at_its_limit_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "late"
    child = f"import time; time.sleep(2); open({str(marker)!r}, 'w')"
    source = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    done = run_process([sys.executable, "-c", source], folder=tmp_path, environment={}, timeout=1.5)
    assert time.monotonic() - started < 10
    assert done.code is None and done.output == "begun\n"
    assert done.ending.endswith("its limit")
    time.sleep(1.5)
    assert not marker.exists()


def test_a_program_that_is_not_there_is_an_answer(tmp_path: Path) -> None:
    done = run_process(["no-such-program"], folder=tmp_path, environment={}, timeout=5)
    assert done.code == 127 and "no-such-program" in done.output


def test_long_output_keeps_beginning_and_end() -> None:
    assert shortened("short") == "short"
    text = shortened("a" * 50 + "b" * 1000 + "c" * 50, 80)
    assert text.startswith("a" * 20 + "\n[... 1020 characters ...]\n") and text.endswith("c" * 50)
