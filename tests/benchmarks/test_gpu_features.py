"""The stage `features` of `make gpu-check` without a GPU: the same code at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_features import _judged, format_features, run_features_stage
from benchmarks.gpu_stages import Checkout
from benchmarks.job_process import Found

ROOT = Path(__file__).parents[2]
HERE = Checkout(ROOT, sys.executable, "9.0")


def test_both_readers_are_measured() -> None:
    part = run_features_stage(
        HERE, device="cpu", network="shufflenet_v2_x0_5", pictures=6, side=64, batch_size=4
    )
    assert part["status"] == "passed", part
    assert json.loads(json.dumps(part)) == part
    assert {one["side"] for one in part["figures"]} == {"pil", "torchvision"}
    assert part["summary"].endswith("pictures a second, without nvJPEG")
    assert 0 < part["requirements"][0]["median"] < 0.05
    assert "features extracted" in "\n".join(format_features(part))


def test_without_torchvision_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    part = run_features_stage(HERE)
    assert part == {"status": "skipped", "summary": "torchvision is not installed"}
    assert format_features(part) == []


def test_a_failure_and_features_too_far_apart_fail_the_stage() -> None:
    failed = _judged(Found(failed={"features": "RuntimeError: no kernel"}))
    assert failed == {"status": "failed", "summary": "RuntimeError: no kernel"}
    result: dict[str, Any] = {"figures": [], "requirements": [{"met": False}], "nvjpeg": True}
    part = _judged(Found(results={"features": result}))
    assert part["status"] == "failed" and "too far apart" in part["summary"]
    assert _judged(Found())["summary"] == "no time was left"
