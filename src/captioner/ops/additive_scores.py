"""`additive_scores`: what additive attention gives every region of each token's image.

Letters: I images, R regions, N tokens, A units of the hidden layer.

The hidden layer of all tokens, [N, R, A], is the largest tensor of such a model: 40 million numbers
in a step of 960 tokens. The operator `captioner::additive_scores` of csrc/ never has it in memory,
and computes it from exponentials of queries and keys alone, without a tanh for each number; the
backward computes it anew. Elsewhere ops/additive_reference.py does the same in PyTorch.
"""

import torch
from torch import Tensor

from captioner.ops.additive_reference import ReferenceScores
from captioner.ops.backend import choose_backend
from captioner.ops.checks import check_index, check_like, refuse_double_backward
from captioner.ops.extension import ABSENT


def additive_scores(
    queries: Tensor,  # [N, A]
    keys: Tensor,  # [I, R, A]
    images: Tensor,  # [N] int64
    weight: Tensor,  # [A]
    *,
    backend: str = "auto",
) -> Tensor:
    """weight' tanh(queries[n] + keys[images[n], i]) for all tokens n and regions i, [N, R].

    Half types are computed in float32; the result has the type of the queries. Queries and keys
    beyond +-40, in float64 +-300, count as these. `backend` as in `lstm_packed`: "auto" and "fused"
    take the compiled operator on a CPU; everything else is PyTorch's. Raises ValueError naming the
    tensor, what it is and what it should be, RuntimeError or IndexError for an image that is not
    there, ConfigError for a backend that is unknown or not built.
    """
    wide = [x.float() if x.dtype.itemsize < 4 else x for x in (queries, keys, weight)]
    _check(wide[0], wide[1], images, wide[2])
    device_type = queries.device.type
    scores: Tensor
    if choose_backend(backend, device_type) == "fused" and device_type == "cpu":
        scores = torch.ops.captioner.additive_scores(wide[0], wide[1], images, wide[2])
    else:
        scores = ReferenceScores.apply(*wide, images)
    return scores.to(queries.dtype)


def _check(queries: Tensor, keys: Tensor, images: Tensor, weight: Tensor) -> None:
    if queries.dim() != 2 or keys.dim() != 3:
        raise ValueError(
            f"queries must be [N, A] and keys [I, R, A], got {list(queries.shape)} "
            f"and {list(keys.shape)}"
        )
    tokens, units = queries.shape
    expected = {
        "keys": (keys, "[I, R, A]", (*keys.shape[:2], units)),
        "weight": (weight, "[A]", (units,)),
    }
    check_like(expected, "queries", queries)
    check_index("images", "[N] int64", images, queries.device)
    if len(images) != tokens:
        raise ValueError(f"images must be [N] = [{tokens}], got [{len(images)}]")


def _register() -> None:
    """Fake kernels and autograd of the operator and of its backward."""

    def fake(queries, keys, images, weight):  # type: ignore[no-untyped-def]
        return queries.new_empty(queries.shape[0], keys.shape[1])

    def fake_backward(grad_scores, queries, keys, images, weight):  # type: ignore[no-untyped-def]
        return tuple(x.new_empty(x.shape) for x in (queries, keys, weight))

    def save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    def gradients(ctx, grad_scores):  # type: ignore[no-untyped-def]
        found = torch.ops.captioner.additive_scores_backward(grad_scores, *ctx.saved_tensors)
        of_queries, of_keys, of_weight = found
        return of_queries, of_keys, None, of_weight

    name = "captioner::additive_scores"
    torch.library.register_fake(name, fake)
    torch.library.register_fake(f"{name}_backward", fake_backward)
    torch.library.register_autograd(name, gradients, setup_context=save)
    refuse_double_backward(f"{name}_backward", "it is not computed by any backend")


if ABSENT is None:
    _register()
