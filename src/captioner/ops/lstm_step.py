"""`lstm_step`: one step of generation, with the input projection of every word computed beforehand.

Shapes: B sequences, U rows of projection (one a word), H hidden size.

On a CPU the operator also takes K models at once, all tensors with a leading K: what `lstm_step`
calls under torch.vmap, where each model may be at other words.
"""

import torch
from torch import Tensor

from captioner.ops.backend import FUSED, choose_backend
from captioner.ops.checks import check_shapes
from captioner.ops.extension import ABSENT
from captioner.ops.models import register_models
from captioner.ops.reference import acc_dtype


def reference_step(
    projection: Tensor,  # [U, 4H]
    rows: Tensor,  # [B] int64
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
) -> tuple[Tensor, Tensor]:
    """The readable twin; formulas as in ops/reference.py."""
    wide = acc_dtype(hx.dtype)
    i, f, g, o = (projection[rows].to(wide) + (hx @ weight_hh.t()).to(wide)).chunk(4, dim=1)
    c = f.sigmoid() * cx.to(wide) + i.sigmoid() * g.tanh()
    return (o.sigmoid() * c.tanh()).to(hx.dtype), c.to(cx.dtype)


def lstm_step(
    projection: Tensor,  # [U, 4H]
    rows: Tensor,  # [B] int64
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The next hidden state and cell, each [B, H]: one GEMM with weight_hh and the gates.

    Row rows[b] of `projection` is the input of sequence b times weight_ih, both biases added.
    Raises RuntimeError where a gradient would be needed, ValueError for shapes that do not fit.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (projection, hx, cx, weight_hh)):
        raise RuntimeError("lstm_step has no gradient; call it under torch.no_grad()")
    hidden, batch = weight_hh.shape[-1], hx.shape[0]
    expected = {
        "projection": (projection, "[U, 4H]", (projection.shape[0], 4 * hidden)),
        "rows": (rows, "[B]", (batch,)),
        "hx": (hx, "[B, H]", (batch, hidden)),
        "cx": (cx, "[B, H]", (batch, hidden)),
        "weight_hh": (weight_hh, "[4H, H]", (4 * hidden, hidden)),
    }
    check_shapes(expected)
    if choose_backend(backend, hx.device.type) in FUSED:
        h, c = torch.ops.captioner.lstm_step(projection, rows, hx, cx, weight_hh)
        return h, c
    return reference_step(projection, rows, hx, cx, weight_hh)


if ABSENT is None:

    @torch.library.register_fake("captioner::lstm_step")
    def _(
        projection: Tensor, rows: Tensor, hx: Tensor, cx: Tensor, weight_hh: Tensor
    ) -> tuple[Tensor, Tensor]:
        return hx.new_empty(hx.shape), cx.new_empty(cx.shape)

    register_models(
        "captioner::lstm_step",
        torch.ops.captioner.lstm_step.default,
        ("projection", "rows", "hx", "cx", "weight_hh"),
        shared=(),
    )
