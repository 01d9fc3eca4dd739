"""The readable twin of the operator behind `additive_scores`, in PyTorch, some tokens at a time.

Formulas as in csrc/cpu/additive_scores.h. The hidden layer [N, R, A] is made in pieces that stay in
a core's cache, and r is kept for the backward; where it has more than `KEPT_VALUES`, it is made
once more there.

Letters: I images, R regions, N tokens, n tokens of a piece, A units of the hidden layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_VALUES = 2**19  # of the hidden layer in a piece: 2 MB of float32
GPU_VALUES = 2**26
KEPT_VALUES = 2**27  # 0.5 GB of float32
LIMITS = {torch.float32: 40.0, torch.float64: 300.0}  # exp(2 x) and exp(-2 x) are normal numbers


class ReferenceScores(torch.autograd.Function):
    """`ReferenceScores.apply(queries, keys, weight, images)`, of float32 or float64: the scores."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, weight: Tensor, images: Tensor) -> Tensor:
        """weight' tanh(queries[n] + keys[images[n], i]), [N, R]."""
        scores = queries.new_empty(len(queries), keys.shape[1])
        keeps = any(ctx.needs_input_grad) and len(queries) * keys[0].numel() <= KEPT_VALUES
        kept = queries.new_empty(len(queries), *keys.shape[1:]) if keeps else None
        powers = _power(queries), _power(keys)
        with torch.autocast(queries.device.type, enabled=False):
            for rows in _pieces(queries, keys):
                out = None if kept is None else kept[rows]
                torch.matmul(_ratios(*powers, images, rows, out), weight, out=scores[rows])
        ctx.save_for_backward(queries, keys, weight, images, kept)
        return weight.sum() - 2 * scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of queries, keys and weight."""
        queries, keys, weight, images, kept = ctx.saved_tensors
        grad_queries, grad_keys = torch.empty_like(queries), torch.zeros_like(keys)
        grad_weight = grad.sum().expand_as(weight).clone()
        powers = None if kept is not None else (_power(queries), _power(keys))
        for rows in _pieces(queries, keys):
            r = kept[rows] if powers is None else _ratios(*powers, images, rows)
            grad_weight -= 2 * (grad[rows].flatten() @ r.flatten(0, 1))
            change = (1 - r).mul_(r).mul_(4 * weight).mul_(grad[rows].unsqueeze(2))
            torch.sum(change, dim=1, out=grad_queries[rows])
            grad_keys.index_add_(0, images[rows], change)
        return grad_queries, grad_keys, grad_weight, None


def _pieces(queries: Tensor, keys: Tensor) -> list[slice]:
    """Which tokens are computed together."""
    values = CPU_VALUES if queries.device.type == "cpu" else GPU_VALUES
    size = max(values // keys[0].numel(), 1)
    return [slice(start, start + size) for start in range(0, len(queries), size)]


def _power(x: Tensor) -> Tensor:
    limit = LIMITS[x.dtype]
    return (2 * x.clamp(-limit, limit)).exp_()


def _ratios(
    queries: Tensor,  # exp(2 q) [N, A]
    keys: Tensor,  # exp(2 k) [I, R, A]
    images: Tensor,  # [N]
    rows: slice,
    out: Tensor | None = None,
) -> Tensor:
    """r [n, R, A] of some tokens, in `out` where it is given."""
    r = torch.index_select(keys, 0, images[rows], out=out)
    return r.mul_(queries[rows].unsqueeze(1)).add_(1).reciprocal_()
