"""`lstm_step`: one step of decoding, where what the words contribute is known beforehand.

Shapes: B sequences, U rows of sums (one a word), H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.ops.backend import FUSED, choose_backend
from captioner.ops.extension import ABSENT
from captioner.ops.reference import state_dtype


def reference_step(
    sums: Tensor,  # [U, 4H]
    rows: Tensor,  # [B] int64
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
) -> tuple[Tensor, Tensor]:
    """The readable twin; formulas as in ops/reference.py."""
    wide = state_dtype(hx.dtype)
    i, f, g, o = (sums[rows].to(wide) + (hx @ weight_hh.t()).to(wide)).chunk(4, dim=1)
    c = f.sigmoid() * cx.to(wide) + i.sigmoid() * g.tanh()
    return (o.sigmoid() * c.tanh()).to(hx.dtype), c.to(cx.dtype)


def lstm_step(
    sums: Tensor,  # [U, 4H]
    rows: Tensor,  # [B] int64
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The next hidden state and cell, each [B, H]: one product with weight_hh and the gates.

    Row rows[b] of `sums` is what sequence b reads times weight_ih, both biases added. Has no
    gradient: raises RuntimeError where one would be wanted, ValueError for shapes that do not fit.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (sums, hx, cx, weight_hh)):
        raise RuntimeError("lstm_step has no gradient; call it under torch.no_grad()")
    hidden, batch = weight_hh.shape[-1], hx.shape[0]
    expected = {
        "sums": (sums, "[U, 4H]", (sums.shape[0], 4 * hidden)),
        "rows": (rows, "[B]", (batch,)),
        "hx": (hx, "[B, H]", (batch, hidden)),
        "cx": (cx, "[B, H]", (batch, hidden)),
        "weight_hh": (weight_hh, "[4H, H]", (4 * hidden, hidden)),
    }
    for name, (tensor, letters, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {letters} = {list(shape)}, got {list(tensor.shape)}")
    if choose_backend(backend, hx.device.type) in FUSED:
        h, c = torch.ops.captioner.lstm_step(sums, rows, hx, cx, weight_hh)
        return h, c
    return reference_step(sums, rows, hx, cx, weight_hh)


if ABSENT is None:

    @torch.library.register_fake("captioner::lstm_step")
    def _(
        sums: Tensor, rows: Tensor, hx: Tensor, cx: Tensor, weight_hh: Tensor
    ) -> tuple[Tensor, Tensor]:
        return hx.new_empty(hx.shape), cx.new_empty(cx.shape)
