"""suite=attention on tiny sizes, in this process; its plain loop trains as show_attend_tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import attention
from benchmarks.attention import (
    KEYS_ONCE,
    MODELS,
    PLAIN,
    POOLED,
    PRODUCTS,
    SEARCHED,
    AttentionBenchmark,
    TimedModel,
)
from benchmarks.command import run_benchmark
from benchmarks.config import BenchmarkConfig
from benchmarks.suite import Run

NO_DROPOUT = [
    f"model.{name}_dropout=0" for name in ("feature", "region", "attention", "input", "output")
]
SETTINGS = AttentionBenchmark(
    images=6, regions=4, feature_dim=12, hidden_size=16, batch_size=2, steps=2
)
RUN = Run(repeats=1, device=torch.device("cpu"))


class InThisProcess:
    """In place of a Worker."""

    def __init__(self, build: Any, *arguments: Any, threads: int) -> None:
        self.built = build(*arguments)

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.built, method)(*arguments)


def test_every_implementation_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "Worker", InThisProcess)
    monkeypatch.setattr(attention, "VOCABULARY_FROM", 6)
    some = ["layered_attention lstm", "show_attend_tell"]
    settings = replace(SETTINGS, models=some)
    config = BenchmarkConfig(
        suite="attention", device="cpu", threads=None, repeats=2, attention=settings
    )
    record = run_benchmark(config)
    everything = {*some, POOLED, PRODUCTS, PLAIN, KEYS_ONCE}

    def implementations(what: str) -> set[str]:
        return {one["implementation"] for one in record["figures"] if one["what"] == what}

    assert implementations("a step") == everything
    assert implementations("peak memory of the process, training") == everything
    assert implementations("beam search of 5") == {*some, POOLED}
    assert implementations(f"speed to {PLAIN}") == implementations(f"speed to {KEYS_ONCE}")
    required = {one["what"]: one for one in record["requirements"]}
    bounds = {what: (one["at_least"], one["at_most"]) for what, one in required.items()}
    assert bounds == {
        f"step to {POOLED} and {PRODUCTS}": (None, 1.5),
        f"speed to {PLAIN} with feedback": (3, None),
        "peak memory, training": (None, 3000),
        "beam search of 5": (150, None),
    }
    step = {x["implementation"]: x for x in record["figures"] if x["what"] == "a step"}
    lstm = "layered_attention lstm"
    ratio = next(x for x in record["requirements"] if x["what"].startswith("step to"))
    assert ratio["axes"] == {"model": lstm}
    parts = [step[POOLED], step[PRODUCTS]]
    assert ratio["min"] <= step[lstm]["max"] / sum(x["min"] for x in parts) * 1.001
    assert ratio["max"] >= step[lstm]["min"] / sum(x["max"] for x in parts) * 0.999


@pytest.mark.parametrize("plain", [PLAIN, KEYS_ONCE])
def test_the_plain_loop_trains_as_show_attend_tell(
    plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of some steps from the same weights over the same captions, without dropout."""
    monkeypatch.setattr(attention, "VOCABULARY_FROM", 6)
    grids = attention.draw_grids(tmp_path, SETTINGS, seed=0)

    def losses(name: str, *more: str) -> list[float]:
        training = attention.attention_training(name, SETTINGS, RUN, grids, *NO_DROPOUT, *more)
        return training.build(name).losses(5)

    own = losses("show_attend_tell")
    assert losses(plain) == pytest.approx(own, rel=1e-5)
    assert abs(losses(plain, "model.doubly_stochastic=0")[0] - own[0]) > 0.01


def test_every_image_is_searched_for_as_many_steps(tmp_path: Path) -> None:
    grids = attention.draw_grids(tmp_path, SETTINGS, seed=0)
    timed = TimedModel("up_down", SETTINGS, RUN, grids)
    found = timed.captions()
    assert [len(one[0].words) for one in found] == [SEARCHED] * SETTINGS.images
    assert timed.training.data.vocab_size == 2544  # words of more captions than are trained on


def test_all_models_take_the_same_captions_and_only_the_pooled_one_a_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "VOCABULARY_FROM", 6)
    grids = attention.draw_grids(tmp_path, SETTINGS, seed=0)
    batches = {}
    for name, shape in ((next(iter(MODELS)), (4, 12)), (POOLED, (1, 12))):
        training = attention.attention_training(name, SETTINGS, RUN, grids)
        batches[name] = training.data.dataset[next(iter(training.order()))]
        assert batches[name].images.shape == (2, *shape)
        assert len(batches[name].image_rows) == 10
    grid, pooled = batches.values()
    assert torch.equal(grid.targets, pooled.targets)
