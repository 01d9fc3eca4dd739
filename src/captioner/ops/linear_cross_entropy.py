"""`linear_cross_entropy`: the loss at a language model's end, from hidden states to nats.

Shapes: N tokens, H hidden size, V vocabulary.

The operator `captioner::linear_cross_entropy` of csrc/ computes logits, softmax and gradient of a
few tokens while they are in cache, so that the logits exist once and their gradient overwrites
them. Without it torch's linear layer and cross_entropy compute the same; the tests compare the two.
It also takes K models at once, whose hidden states, weights and biases have a leading K: what
`linear_cross_entropy` calls under torch.vmap.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.ops.backend import choose_backend
from captioner.ops.checks import check_like, refuse_double_backward
from captioner.ops.extension import ABSENT, why_not_on
from captioner.ops.models import register_models

IGNORED = -100  # the target of a token that counts for nothing, torch's own ignore_index
SHORT_VECTORS = 16  # bytes; with no longer ones torch's BLAS is faster


def linear_cross_entropy(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    bias: Tensor,  # [V]
    targets: Tensor,  # [N] int64
    *,
    label_smoothing: float = 0.0,
    backend: str = "auto",
    token_weights: Tensor | None = None,  # [N]
) -> Tensor:
    """Summed cross-entropy of softmax(hidden weight^T + bias) in nats, float32 or float64 [].

    `label_smoothing` moves that share of a target's probability evenly over the vocabulary (Szegedy
    et al. 2016). Tokens whose target is IGNORED are left out; the others count once, or as often as
    `token_weights` says. `backend` as in `lstm_packed`: "auto" and "fused" take the compiled
    operator for float32 and float64 on a CPU; everything else, and weighted tokens, are torch's.
    Raises ValueError naming the tensor, what it is and what it should be, RuntimeError or
    IndexError for a target outside of the vocabulary, ConfigError for a backend that is unknown or
    not built.
    """
    _check(hidden, weight, bias, targets, token_weights)
    if token_weights is None and _is_compiled(hidden, backend):
        loss: Tensor = _compiled(hidden, weight, bias, targets, label_smoothing)[0]
        return loss
    logits = F.linear(hidden, weight, bias)
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    settings: dict[str, Any] = {"label_smoothing": label_smoothing, "ignore_index": IGNORED}
    if token_weights is None:
        return F.cross_entropy(logits, targets, reduction="sum", **settings)
    return (token_weights * F.cross_entropy(logits, targets, reduction="none", **settings)).sum()


def _compiled(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float, *_: Any
) -> Any:
    """What the operator returns, of one model or of K."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, weight, bias))
    return torch.ops.captioner.linear_cross_entropy(
        hidden, weight, bias, targets, label_smoothing, wanted
    )


def _is_compiled(hidden: Tensor, backend: str) -> bool:
    """Whether the extension's kernel computes this."""
    device_type = hidden.device.type
    chosen = choose_backend(backend, device_type)
    if chosen != "fused" or device_type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return hidden.dtype.itemsize >= 4 and (_VECTOR_BYTES > SHORT_VECTORS or backend == "fused")


def _check(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor | None
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2:
        raise ValueError(
            f"hidden must be [N, H] and weight [V, H], got {list(hidden.shape)} "
            f"and {list(weight.shape)}"
        )
    expected = {
        "weight": (weight, "[V, H]", (weight.shape[0], hidden.shape[1])),
        "bias": (bias, "[V]", (weight.shape[0],)),
        "targets": (targets, "[N]", (hidden.shape[0],)),
    }
    if token_weights is not None:
        expected["token_weights"] = (token_weights, "[N]", (hidden.shape[0],))
    check_like(expected, "hidden", hidden, dtype=False)
    if targets.dtype != torch.int64:
        raise ValueError(f"targets must be of int64, got {targets.dtype}")


def _register() -> None:
    """Fake kernels and autograd of the operator and of its backward."""

    def fake(hidden, weight, bias, targets, label_smoothing=0.0, wants_gradient=True):  # type: ignore[no-untyped-def]
        width = 4 * _VECTOR_BYTES // hidden.dtype.itemsize
        *models, vocabulary, _ = weight.shape
        columns = (vocabulary + width - 1) // width * width
        tokens, words = (hidden.shape[-2], vocabulary) if wants_gradient else (0, 0)
        return tuple(hidden.new_empty((*models, *s)) for s in ((), (columns * tokens,), (words,)))

    def fake_backward(grad_loss, hidden, weight, grad_logits, grad_bias):  # type: ignore[no-untyped-def]
        return tuple(x.new_empty(x.shape) for x in (hidden, weight, grad_bias))

    def save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        _, grad_logits, grad_bias = output
        ctx.mark_non_differentiable(grad_logits, grad_bias)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], inputs[1], grad_logits, grad_bias)

    def gradients(ctx, grad_loss, *_unused):  # type: ignore[no-untyped-def]
        if grad_loss is None:
            return (None,) * 6
        found = torch.ops.captioner.linear_cross_entropy_backward(grad_loss, *ctx.saved_tensors)
        return (*found, None, None, None)

    name = "captioner::linear_cross_entropy"
    torch.library.register_fake(name, fake)
    torch.library.register_fake(f"{name}_backward", fake_backward)
    torch.library.register_autograd(name, gradients, setup_context=save)
    refuse_double_backward(f"{name}_backward", "for a double backward take backend='torch'")
    names = ("hidden", "weight", "bias", "targets", "label_smoothing", "wants_gradient")
    # Under vmap tensors do not say whether a gradient is wanted: theirs are found out anew.
    register_models(name, _compiled, names, ("targets",))


_VECTOR_BYTES = 0
if why_not_on("cpu") is None:
    _VECTOR_BYTES = int(torch.ops.captioner.cpu_vector_bytes())
if ABSENT is None:
    _register()
