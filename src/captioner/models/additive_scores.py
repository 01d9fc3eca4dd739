"""Scores of additive attention over the regions of each token's image, some tokens at a time.

The hidden layer of all tokens, [N, R, A], is the largest tensor of such a model: 160 MB for a step
of 960 tokens. It is made in pieces that stay in a core's cache, and kept for the backward; where it
has more than `KEPT_VALUES`, it is made once more there.

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
        pieces = _pieces(queries, keys)
        scores = queries.new_empty(len(queries), keys.shape[1])
        keeps = any(ctx.needs_input_grad) and len(queries) * keys[0].numel() <= KEPT_VALUES
        kept = queries.new_empty(len(queries), *keys.shape[1:]) if keeps else None
        with torch.autocast(queries.device.type, enabled=False):
            for rows in pieces:
                hidden = _hidden(queries, keys, images, rows, None if kept is None else kept[rows])
                torch.matmul(hidden, weight, out=scores[rows])
        ctx.save_for_backward(queries, keys, weight, images, kept)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, weight, images, kept = ctx.saved_tensors
        grad_queries, grad_keys = torch.empty_like(queries), torch.zeros_like(keys)
        grad_weight = torch.zeros_like(weight)
        for rows in _pieces(queries, keys):
            made = _hidden(queries, keys, images, rows) if kept is None else kept[rows]
            grad_weight += grad[rows].flatten() @ made.flatten(0, 1)
            # d tanh = 1 - tanh^2
            change = made.square().neg_().add_(1).mul_(weight).mul_(grad[rows].unsqueeze(2))
            torch.sum(change, dim=1, out=grad_queries[rows])
            grad_keys.index_add_(0, images[rows], change)
        return grad_queries, grad_keys, grad_weight, None


def _pieces(queries: Tensor, keys: Tensor) -> list[slice]:
    """Which tokens are computed together."""
    values = CPU_VALUES if queries.device.type == "cpu" else GPU_VALUES
    size = max(values // keys[0].numel(), 1)
    return [slice(start, start + size) for start in range(0, len(queries), size)]


def _hidden(
    queries: Tensor, keys: Tensor, images: Tensor, rows: slice, out: Tensor | None = None
) -> Tensor:
    """The hidden layer [n, R, A] of some tokens, in `out` where it is given."""
    hidden = torch.index_select(keys, 0, images[rows], out=out)
    return hidden.add_(queries[rows].unsqueeze(1)).tanh_()
