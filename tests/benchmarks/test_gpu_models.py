"""The stage `models` of `make gpu-check`, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu_jobs import format_jobs, judge
from benchmarks.gpu_models import IN_TURN, ONE_LAUNCH, do, models_jobs, run_models_stage
from benchmarks.models_prediction import COUNTS
from benchmarks.worker import JobResults
from captioner.ops.extension import ABSENT

SIZES = {"hidden_size": 8, "batch_size": 4, "dtype": "float32"}
JOBS: dict[str, dict[str, Any]] = {
    "lstm": {"what": "lstm", "counts": [1, 2], **SIZES},
    "steps": {
        "what": "steps",
        "data": {"images": 20, "feature_dim": 4},
        "sizes": SIZES,
        "counts": [2],
        "backends": ["fused"],
        "graphs": [False],
        "steps": 1,
        "repeats": 1,
    },
}


@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
def test_the_stage_compares_one_call_with_one_after_another() -> None:
    found = JobResults({name: do(torch.device("cpu"), **job) for name, job in JOBS.items()})
    part = judge(found, {})
    assert part["status"] == "passed", part
    assert {one["what"] for one in part["requirements"]} == {
        f"largest difference of K models {ONE_LAUNCH} to {IN_TURN}"
    }
    figures = {(one["what"], one["implementation"], one["axes"]["K"]) for one in part["figures"]}
    both = "forward and backward"
    for count in (1, 2):
        assert {(both, name, count) for name in (ONE_LAUNCH, IN_TURN)} <= figures
        assert ("times one model", ONE_LAUNCH, count) in figures
    assert ("a step of K models", "together, eager", 2) in figures
    assert "K 2" in "\n".join(format_jobs("models", part))


def test_no_job_is_begun_after_the_deadline() -> None:
    part = run_models_stage(seconds=0, device="cpu")
    assert part["status"] == "failed" and part["skipped"] == [*models_jobs()]


def test_the_jobs_are_those_of_the_prediction() -> None:
    jobs = models_jobs()
    lstm = [one for one in jobs.values() if one["what"] == "lstm"]
    assert {(one["hidden_size"], one["batch_size"]) for one in lstm} == {
        (hidden, batch) for hidden in (256, 512) for batch in (64, 128)
    }
    assert all(tuple(one["counts"]) == COUNTS for one in lstm)
