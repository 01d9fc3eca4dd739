"""The stage `models` of `make gpu-check`, without a GPU."""

from __future__ import annotations

import pytest

from benchmarks import gpu_models
from benchmarks.gpu_jobs import format_jobs
from benchmarks.gpu_models import IN_TURN, ONE_LAUNCH, models_jobs, run_models_stage
from benchmarks.models_prediction import COUNTS
from captioner.ops.extension import ABSENT


@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
@pytest.mark.usefixtures("forked_workers")
def test_the_stage_compares_one_call_with_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_models, "JOB_SECONDS", 600.0)  # other tests may run beside it
    sizes = {"hidden_size": 8, "batch_size": 4, "dtype": "float32"}
    jobs = {
        "lstm": {"what": "lstm", "counts": [1, 2], **sizes},
        "steps": {
            "what": "steps",
            "data": {"images": 20, "feature_dim": 4},
            "sizes": sizes,
            "counts": [2],
            "backends": ["fused"],
            "graphs": [False],
            "steps": 2,
            "repeats": 1,
        },
    }
    part = run_models_stage(jobs, seconds=300, device="cpu")
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


def test_the_jobs_are_those_of_the_prediction() -> None:
    jobs = models_jobs()
    lstm = [one for one in jobs.values() if one["what"] == "lstm"]
    assert {(one["hidden_size"], one["batch_size"]) for one in lstm} == {
        (hidden, batch) for hidden in (256, 512) for batch in (64, 128)
    }
    assert all(tuple(one["counts"]) == COUNTS for one in lstm)
