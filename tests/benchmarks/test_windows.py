"""suite=windows: all implementations compute the same gradients; the record names its sizes."""

from __future__ import annotations

import torch

from benchmarks.settings import WindowsBenchmark
from benchmarks.suite import Run
from benchmarks.windows import BASELINE, SHARED, make_calls, windows_suite
from captioner.ops import choose_backend

CPU = torch.device("cpu")


def test_all_implementations_compute_the_same() -> None:
    torch.manual_seed(0)
    backend = choose_backend("auto", "cpu")
    calls = make_calls(3, 5, 8, 2, backend, CPU)
    baseline = calls[BASELINE]()
    for name in (backend, SHARED):
        mine = calls[name]()
        assert len(baseline) == len(mine) == 9
        for a, b in zip(mine, baseline, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_every_size_has_its_figures_and_its_requirement() -> None:
    settings = WindowsBenchmark(batch_sizes=[2, 3], window=4, hidden_sizes=[8], num_layers=1)
    result = windows_suite(settings, Run(repeats=2, device=CPU))
    assert [one.axes["B"] for one in result.requirements] == [2, 2, 3, 3]
    assert {one.implementation for one in result.figures} == {
        BASELINE,
        SHARED,
        choose_backend("auto", "cpu"),
    }
    assert all(len(one.spread.values) == 2 and min(one.spread.values) > 0 for one in result.figures)
