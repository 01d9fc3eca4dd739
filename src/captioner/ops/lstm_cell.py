"""The LSTM's cell after its products: gates to h and c, with their gradients in closed form.

For loops whose next input depends on this step, where `lstm_packed` cannot take all steps at once.
Formulas as in ops/reference.py.

Shapes: B sequences, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captioner.ops.checks import check_shapes
from captioner.ops.reference import acc_dtype


def lstm_cell(gates: Tensor, cx: Tensor) -> tuple[Tensor, Tensor]:
    """h and c [B, H] after pre-activations `gates` [B, 4H] in the order i, f, g, o, and c before,
    `cx` [B, H], whose type the results have.

    Half types are computed in float32. ValueError for shapes that do not fit.
    """
    batch, hidden = cx.shape
    check_shapes({"gates": (gates, "[B, 4H]", (batch, 4 * hidden))})
    h, c = _Cell.apply(gates, cx)
    return h, c


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, cx: Tensor) -> tuple[Tensor, Tensor]:
        wide = acc_dtype(cx.dtype)
        pre = gates.to(wide)
        hidden = cx.shape[1]
        active = pre.sigmoid()
        torch.tanh(pre[:, 2 * hidden : 3 * hidden], out=active[:, 2 * hidden : 3 * hidden])
        i, f, g, o = active.chunk(4, dim=1)
        c = torch.addcmul(i * g, f, cx.to(wide))
        tanh_c = c.tanh()
        ctx.save_for_backward(active, cx, tanh_c)
        ctx.dtype = gates.dtype
        return (o * tanh_c).to(cx.dtype), c.to(cx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor, Tensor]:
        active, cx, tanh_c = ctx.saved_tensors
        i, f, g, o = active.chunk(4, dim=1)
        grad_h, grad_c = grad_h.to(active.dtype), grad_c.to(active.dtype)
        # d c = d c from outside + d h o (1 - tanh(c)^2)
        of_c = torch.addcmul(grad_c, grad_h * o, 1 - tanh_c * tanh_c)
        outer = torch.cat([of_c * g, of_c * cx, of_c * i, grad_h * tanh_c], 1)
        hidden = cx.shape[1]
        slopes = active * (1 - active)
        tanh_slope = slopes[:, 2 * hidden : 3 * hidden]
        torch.mul(g, g, out=tanh_slope)
        tanh_slope.neg_().add_(1)
        return outer.mul_(slopes).to(ctx.dtype), (of_c * f).to(cx.dtype)
