"""The step of decoding against a whole LSTM of one step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captioner.ops import lstm_packed, lstm_step
from captioner.ops.extension import ABSENT

BACKENDS = [
    "reference",
    "torch",
    pytest.param("fused", marks=pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))),
]
B, U, E, H = 5, 7, 3, 18


def drawn(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "words": (U, E),
        "hx": (B, H),
        "cx": (B, H),
        "weight_ih": (4 * H, E),
        "weight_hh": (4 * H, H),
        "bias_ih": (4 * H,),
        "bias_hh": (4 * H,),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) / 2
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.05)]
)
def test_a_step_is_an_lstm_of_one_step(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    x = drawn(dtype)
    rows = torch.tensor([3, 0, 3, 6, 1])
    sums = x["words"] @ x["weight_ih"].t() + x["bias_ih"] + x["bias_hh"]
    h, c = lstm_step(sums, rows, x["hx"], x["cx"], x["weight_hh"], backend=backend)
    whole = [x[name] for name in ("hx", "cx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    one = torch.tensor([B])
    _, hy, cy = lstm_packed(x["words"][rows], one, *whole, backend="reference")
    assert h.dtype == c.dtype == dtype
    torch.testing.assert_close(h, hy, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(c, cy, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wanted_gradient_is_refused(backend: str) -> None:
    x = drawn()
    sums = torch.zeros(U, 4 * H, dtype=torch.float64)
    call = (sums, torch.zeros(B, dtype=torch.int64), x["hx"].requires_grad_(), x["cx"])
    with pytest.raises(RuntimeError, match="lstm_step has no gradient"):
        lstm_step(*call, x["weight_hh"], backend=backend)
    with torch.no_grad():
        lstm_step(*call, x["weight_hh"], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "projection",
            torch.zeros(U, H),
            r"projection must be \[U, 4H\] = \[7, 72\], got \[7, 18\]",
        ),
        ("rows", torch.zeros(2, dtype=torch.int64), r"rows must be \[B\] = \[5\], got \[2\]"),
        ("cx", torch.zeros(B, 1), r"cx must be \[B, H\] = \[5, 18\], got \[5, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, wrong: Tensor, message: str, backend: str) -> None:
    x = drawn(torch.float32)
    arguments = {
        "projection": torch.zeros(U, 4 * H),
        "rows": torch.zeros(B, dtype=torch.int64),
        "hx": x["hx"],
        "cx": x["cx"],
        "weight_hh": x["weight_hh"],
    }
    with pytest.raises(ValueError, match=message):
        lstm_step(**{**arguments, name: wrong}, backend=backend)


@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
def test_a_row_that_is_not_there_is_refused() -> None:
    x = drawn()
    sums = torch.zeros(U, 4 * H, dtype=torch.float64)
    rows = torch.tensor([0, 1, 2, 3, U])
    with pytest.raises(RuntimeError, match="from 0 to 6, got 7 for token 4"):
        lstm_step(sums, rows, x["hx"], x["cx"], x["weight_hh"], backend="fused")
    torch.library.opcheck(
        torch.ops.captioner.lstm_step.default,
        (sums, rows.clamp(max=6), x["hx"], x["cx"], x["weight_hh"]),
    )
