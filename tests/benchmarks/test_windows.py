"""All sides of suite=windows compute the same gradients, and the record names its sizes."""

from __future__ import annotations

import torch

from benchmarks.windows import PEER, SHARED, make_sides, windows_suite
from captioner.ops import choose_backend

CPU = torch.device("cpu")


def test_all_sides_compute_the_same() -> None:
    torch.manual_seed(0)
    backend = choose_backend("auto", "cpu")
    sides = make_sides(3, 5, 8, 2, backend, CPU)
    peer = sides[PEER]()
    for side in (backend, SHARED):
        mine = sides[side]()
        assert len(peer) == len(mine) == 9
        for a, b in zip(mine, peer, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_every_size_has_its_figures_and_its_requirement() -> None:
    result = windows_suite(
        batch_sizes=[2, 3], window=4, hidden_sizes=[8], num_layers=1, repeats=2, device=CPU, seed=0
    )
    assert [one.axes["B"] for one in result.requirements] == [2, 2, 3, 3]
    assert {one.side for one in result.figures} == {PEER, SHARED, choose_backend("auto", "cpu")}
    assert all(len(one.spread.values) == 2 and one.spread.low > 0 for one in result.figures)
