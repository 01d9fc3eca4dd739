"""Dropout: how much it drops, what it leaves, and that one generator decides."""

from __future__ import annotations

import pytest
import torch

from captioner.ops import dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_each_element_is_dropped_with_probability_p_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(1000, 1003), p, training=True)
    kept = found[found != 0]
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - p), rel=1e-4)
    # Six deviations of a binomial's share, and of a row's and a column's.
    n = found.numel()
    assert abs((found == 0).double().mean().item() - p) < 6 * (p * (1 - p) / n) ** 0.5
    for dim in (0, 1):
        shares = (found == 0).double().mean(dim)
        assert (shares - p).abs().max() < 6 * (p * (1 - p) / 1000) ** 0.5


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_001), 0.5, training=True) == 0).double() - 0.5
    for lag in range(1, 9):
        assert abs((dropped[lag:] * dropped[:-lag]).mean().item()) < 6 * 0.25 / 400_000**0.5


def test_the_gradient_goes_where_the_value_went() -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    y = dropout(x, 0.4, training=True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.4, training=True), y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_type_and_shape_stay(dtype: torch.dtype) -> None:
    for shape in ((), (3,), (2, 0), (5, 3, 2)):
        found = dropout(torch.ones(shape, dtype=dtype), 0.5, training=True)
        assert found.dtype == dtype and found.shape == shape


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    x, before = torch.randn(4), torch.get_rng_state()
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
    assert torch.equal(dropout(x, 1.0, training=True), torch.zeros(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_probability_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="p must be from 0 to 1, got 2"):
        dropout(torch.ones(2), 2, training=True)
