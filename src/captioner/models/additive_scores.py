"""Scores of additive attention over the regions of each token's image, some tokens at a time.

The hidden layer of all tokens, [N, R, A], is the largest tensor of such a model: 40 million numbers
in a step of 960 tokens. Each would cost a tanh, but

    tanh(q + k) = 1 - 2 r,   r = 1 / (1 + exp(2 q) exp(2 k)),   d tanh = 4 r (1 - r)

needs exponentials of queries and keys alone, and is five times as fast on a CPU, as measured. It is
exact to rounding while |q| and |k| are at most `LIMITS`; beyond, they count as these. The layer is
made in pieces that stay in a core's cache, and r is kept for the backward; where it has more than
`KEPT_VALUES`, it is made once more there.

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


def additive_scores(
    queries: Tensor,  # [N, A]
    keys: Tensor,  # [I, R, A]
    images: Tensor,  # [N] int64
    weight: Tensor,  # [A]
) -> Tensor:
    """weight' tanh(queries[n] + keys[images[n], i]) for all tokens n and regions i, [N, R].

    Half types are computed in float32.
    """
    wide = [x.float() if x.dtype.itemsize < 4 else x for x in (queries, keys, weight)]
    scores: Tensor = _AdditiveScores.apply(*wide, images)
    return scores.to(queries.dtype)


class _AdditiveScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, weight: Tensor, images: Tensor) -> Tensor:
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
