"""Scores of additive attention over the regions of each token's image, in little memory.

The hidden layer of all tokens, [N, R, A], is the largest tensor of such a model: 160 MB for a step
of 960 tokens. It is computed some tokens at a time, and again in the backward.

Letters: I images, R regions, N tokens, A units of the hidden layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_VALUES = 2**19  # of the hidden layer at a time: 2 MB of float32 stay in a core's cache
GPU_VALUES = 2**26


def additive_scores(
    queries: Tensor,  # [N, A]
    keys: Tensor,  # [I, R, A]
    images: Tensor,  # [N] int64
    weight: Tensor,  # [A]
) -> Tensor:
    """weight' tanh(queries[n] + keys[images[n], i]) for all tokens n and regions i, [N, R].

    Half types are computed in float32.
    """
    tensors = [x.float() if x.dtype.itemsize < 4 else x for x in (queries, keys, weight)]
    scores: Tensor = _AdditiveScores.apply(*tensors[:2], images, tensors[2])
    return scores.to(queries.dtype)


class _AdditiveScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(queries, keys, images, weight)
        scores = queries.new_empty(len(queries), keys.shape[1])
        with torch.autocast(queries.device.type, enabled=False):
            for rows in _chunks(queries, keys):
                torch.matmul(_hidden(queries, keys, images, rows), weight, out=scores[rows])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, images, weight = ctx.saved_tensors
        grad_queries, grad_keys = torch.empty_like(queries), torch.zeros_like(keys)
        grad_weight = torch.zeros_like(weight)
        for rows in _chunks(queries, keys):
            hidden, own = _hidden(queries, keys, images, rows), grad[rows]
            grad_weight += own.flatten() @ hidden.flatten(0, 1)
            # d tanh = 1 - tanh^2
            change = hidden.square_().neg_().add_(1).mul_(weight).mul_(own.unsqueeze(2))
            grad_queries[rows] = change.sum(1)
            grad_keys.index_add_(0, images[rows], change)
        return grad_queries, grad_keys, None, grad_weight


def _chunks(queries: Tensor, keys: Tensor) -> list[slice]:
    """Which tokens are computed together."""
    values = CPU_VALUES if queries.device.type == "cpu" else GPU_VALUES
    size = max(values // keys[0].numel(), 1)
    return [slice(start, start + size) for start in range(0, len(queries), size)]


def _hidden(queries: Tensor, keys: Tensor, images: Tensor, rows: slice) -> Tensor:
    """The hidden layer [n, R, A] of some tokens."""
    return keys.index_select(0, images[rows]).add_(queries[rows].unsqueeze(1)).tanh_()
