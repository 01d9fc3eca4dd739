"""suite=attention on tiny sizes, in this process; its plain loop trains as show_attend_tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import attention
from benchmarks.attention import KEYS_ONCE, MODELS, PLAIN, POOLED, PRODUCTS, AttentionBenchmark
from benchmarks.command import BenchmarkConfig, run_benchmark
from benchmarks.suite import Run

NO_DROPOUT = [
    f"model.{name}_dropout=0" for name in ("feature", "region", "attention", "input", "output")
]
SETTINGS = AttentionBenchmark(
    images=6, regions=4, feature_dim=12, hidden_size=16, batch_size=2, steps=2
)


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
    threads = torch.get_num_threads()
    config = BenchmarkConfig(
        suite="attention", device="cpu", threads=None, repeats=2, attention=SETTINGS
    )
    record = run_benchmark(config)
    assert torch.get_num_threads() == threads
    everything = {*MODELS, POOLED, PRODUCTS, PLAIN, KEYS_ONCE}

    def implementations(what: str) -> set[str]:
        return {one["implementation"] for one in record["figures"] if one["what"] == what}

    assert implementations("a step") == everything
    assert implementations("peak memory of the process, training") == everything
    assert implementations("beam search of 5") == {*MODELS, POOLED}
    assert implementations(f"speed to {PLAIN}") == implementations(f"speed to {KEYS_ONCE}")
    words = [one for one in record["figures"] if one["unit"] == "words"]
    assert all(1 < one["median"] < 30 for one in words)
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
def test_the_plain_loop_trains_as_show_attend_tell(plain: str, tmp_path: Path) -> None:
    """Losses of some steps from the same weights over the same captions, without dropout."""
    run = Run(repeats=1, device=torch.device("cpu"))
    grids = attention.draw_grids(tmp_path, SETTINGS, seed=0)

    def losses(name: str, *more: str) -> list[float]:
        training = attention.attention_training(name, SETTINGS, run, grids, *NO_DROPOUT, *more)
        return training.build(name).losses(5)

    own = losses("show_attend_tell")
    assert losses(plain) == pytest.approx(own, rel=1e-5)
    assert abs(losses(plain, "model.doubly_stochastic=0")[0] - own[0]) > 0.01


def test_every_model_reads_grids_and_the_pooled_one_a_vector(tmp_path: Path) -> None:
    run = Run(repeats=1, device=torch.device("cpu"))
    grids = attention.draw_grids(tmp_path, SETTINGS, seed=0)
    for name, shape in ((next(iter(MODELS)), (4, 12)), (POOLED, (1, 12))):
        training = attention.attention_training(name, SETTINGS, run, grids)
        batch = training.data.dataset[[0, 3]]
        assert batch.images.shape == (2, *shape) and len(batch.image_rows) == 10
        assert training.data.vocab_size == 2544  # counted in more captions than are trained on
