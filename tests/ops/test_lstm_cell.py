"""`lstm_cell`: the arithmetic of a step of `lstm_packed`, and its gradients."""

from __future__ import annotations

import pytest
import torch

from captioner.ops import lstm_packed
from captioner.ops.lstm_cell import lstm_cell

B, H = 3, 5


def make_rows(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    gates = torch.randn(B, 4 * H, generator=generator, dtype=torch.float64)
    cx = torch.randn(B, H, generator=generator, dtype=torch.float64)
    return (2 * gates).to(dtype), cx.to(dtype)


def test_a_cell_is_a_step_of_the_reference() -> None:
    gates, cx = make_rows()
    weight = torch.eye(4 * H, dtype=torch.float64)  # so that the input is the gates
    hh, bias = torch.zeros(4 * H, H, dtype=torch.float64), torch.zeros(4 * H, dtype=torch.float64)
    one, hx = torch.tensor([B]), torch.zeros(B, H, dtype=torch.float64)
    expected = lstm_packed(gates, one, hx, cx, weight, hh, bias, bias, backend="reference")
    for found, wanted in zip(lstm_cell(gates, cx), expected[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-15)


def test_gradients_are_those_of_finite_differences() -> None:
    leaves = tuple(x.requires_grad_() for x in make_rows())
    assert torch.autograd.gradcheck(lstm_cell, leaves)
    assert torch.autograd.gradcheck(lambda *x: lstm_cell(*x)[0], leaves)  # c's gradient undefined


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    gates, cx = make_rows(dtype)
    found = lstm_cell(gates, cx.float())
    expected = lstm_cell(gates.float(), cx.float())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert all(x.dtype == dtype for x in lstm_cell(gates, cx))


def test_wrong_gates_are_named() -> None:
    gates, cx = make_rows()
    with pytest.raises(ValueError, match=r"gates must be \[B, 4H\] = \[3, 20\], got \[3, 19\]"):
        lstm_cell(gates[:, 1:], cx)
