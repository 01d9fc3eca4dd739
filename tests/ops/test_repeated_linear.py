"""`RepeatedLinear`: the same values and gradients as a layer called at every step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captioner.ops.repeated_linear import RepeatedLinear

STEPS = (4, 3, 3, 1)  # rows at each


def make_layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 5).double()


def looped(apply: Callable[[Tensor], Tensor], first: Tensor) -> Tensor:
    """A sum over a loop in which every step reads the one before."""
    total, rows = torch.zeros((), dtype=first.dtype), first
    for size in STEPS:
        rows = apply(rows[:size]).tanh()
        total = total + rows.square().sum()
    return total


def gradients(total: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, leaves, retain_graph=True))


def test_values_and_gradients_are_those_of_the_layer() -> None:
    layer = make_layer()
    first = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    leaves = (first, layer.weight, layer.bias)
    expected = looped(layer, first)
    found = looped(RepeatedLinear.of(layer), first)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    for one, other in zip(gradients(found, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_term_in_place_of_the_bias_has_its_gradient() -> None:
    layer, first = make_layer(), torch.randn(4, 5, dtype=torch.float64)
    plus = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    leaves = (plus, layer.weight)
    linear = RepeatedLinear(layer.weight)
    found = looped(lambda rows: linear(rows, plus[: len(rows)]), first)
    expected = looped(lambda rows: plus[: len(rows)] + rows @ layer.weight.t(), first)
    for one, other in zip(gradients(found, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_backward_through_a_kept_graph_counts_no_step_twice() -> None:
    """Neither when it was run before, nor when only the input's gradient was asked for."""
    layer = make_layer()
    first = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    total = looped(RepeatedLinear.of(layer), first)
    (alone,) = gradients(total, first)
    once = gradients(total, first, layer.weight)
    torch.testing.assert_close(once[0], alone, rtol=0, atol=0)
    for one, other in zip(gradients(total, first, layer.weight), once, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_steps_that_the_loss_does_not_reach_have_no_part() -> None:
    layer, rows = make_layer(), torch.randn(4, 5, dtype=torch.float64)
    linear = RepeatedLinear.of(layer)
    used, _ = linear(rows).sum(), linear(2 * rows)
    (found,) = gradients(used, layer.weight)
    (expected,) = gradients(layer(rows).sum(), layer.weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_frozen_weight_and_a_loop_without_gradients() -> None:
    layer, rows = make_layer(), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        assert not RepeatedLinear.of(layer)(rows).requires_grad
    layer.requires_grad_(False)
    (found,) = gradients(looped(RepeatedLinear.of(layer), rows), rows)
    (expected,) = gradients(looped(layer, rows), rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_under_autocast_products_are_of_the_autocast_type() -> None:
    layer = make_layer().float()
    rows = torch.randn(4, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = looped(RepeatedLinear.of(layer), rows)
        expected = looped(layer, rows)
    assert layer.weight.dtype == torch.float32
    of_weight = gradients(found, layer.weight)[0]
    assert of_weight.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(of_weight, gradients(expected, layer.weight)[0], rtol=0.1, atol=0.1)


def test_there_is_no_second_derivative() -> None:
    layer, rows = make_layer(), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    total = looped(RepeatedLinear.of(layer), rows)
    (once,) = torch.autograd.grad(total, rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()
