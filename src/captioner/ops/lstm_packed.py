"""`lstm_packed`: one LSTM layer in one direction over packed sequences, whatever computes it.

Shapes: B sequences, T longest length, N packed tokens, E input size, H hidden size.

The operators `captioner::lstm_packed` and `captioner::lstm_packed_backward` carry schema, fake
kernels (for torch.compile) and autograd; their plain-PyTorch kernel is ops/reference.py. The
backend "torch" bypasses them for ATen's or cuDNN's LSTM.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from captioner.ops import reference
from captioner.ops.backend import choose_backend

Outputs = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("captioner::lstm_packed", mutates_args=())
def _forward(
    input: Tensor,  # [N, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [4H, E]
    weight_hh: Tensor,  # [4H, H]
    bias_ih: Tensor,  # [4H]
    bias_hh: Tensor,  # [4H]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_batch_sizes(batch_sizes, input.shape[0])  # a compiled caller could not
    return reference.forward(input, batch_sizes, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh)


@_forward.register_fake
def _(
    input: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, hidden = input.shape[0], weight_hh.shape[1]
    workspace = input.new_empty(5 * tokens * hidden, dtype=reference.state_dtype(input.dtype))
    shape = (hx.shape[0], hidden)
    return (
        input.new_empty(tokens, hidden),
        input.new_empty(shape),
        input.new_empty(shape),
        workspace,
    )


@torch.library.custom_op("captioner::lstm_packed_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    grad_hy: Tensor,
    grad_cy: Tensor,
    input: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    output: Tensor,
    workspace: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return reference.backward(
        grad_output, grad_hy, grad_cy, input, batch_sizes, hx, cx, weight_ih, weight_hh, output,
        workspace,
    )  # fmt: skip


@_backward.register_fake
def _(
    grad_output: Tensor,
    grad_hy: Tensor,
    grad_cy: Tensor,
    input: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    output: Tensor,
    workspace: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    likes = (input, hx, cx, weight_ih, weight_hh)
    bias = weight_ih.new_empty(weight_ih.shape[0])
    return (*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in likes), bias)  # type: ignore[return-value]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    input, batch_sizes, hx, cx, weight_ih, weight_hh, _, _ = inputs
    out, _, _, workspace = output
    ctx.mark_non_differentiable(workspace)
    ctx.save_for_backward(input, batch_sizes, hx, cx, weight_ih, weight_hh, out, workspace)


def _gradients(ctx, grad_output, grad_hy, grad_cy, _grad_workspace):  # type: ignore[no-untyped-def]
    gradients = _backward(grad_output, grad_hy, grad_cy, *ctx.saved_tensors)
    grad_input, grad_hx, grad_cx, grad_weight_ih, grad_weight_hh, grad_bias = gradients
    # The two biases share one gradient, but an accumulated .grad must not share memory.
    return (
        grad_input, None, grad_hx, grad_cx, grad_weight_ih, grad_weight_hh, grad_bias,
        grad_bias.clone(),
    )  # fmt: skip


def _refuse(ctx, *gradients):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "lstm_packed has no second derivative; for a double backward take backend='torch' without "
        "cuDNN"
    )


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(_refuse, setup_context=lambda ctx, inputs, output: None)


def lstm_packed(
    input: Tensor,  # [N, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [4H, E]
    weight_hh: Tensor,  # [4H, H]
    bias_ih: Tensor,  # [4H]
    bias_hh: Tensor,  # [4H]
    *,
    backend: str = "auto",
) -> Outputs:
    """One LSTM layer over packed sequences: output [N, H], hy [B, H], cy [B, H].

    The layout is that of torch.nn.utils.rnn.PackedSequence, gates in the order i, f, g, o.
    Under autocast all but float64 is cast to the autocast type first, as cuDNN's LSTM does.
    Raises ValueError naming the tensor, what it is and what it should be; ConfigError for a
    backend that is unknown or not built.
    """
    device_type = input.device.type
    tensors = [input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh]
    if torch.is_autocast_enabled(device_type):
        tensors = [_autocast(tensor, device_type) for tensor in tensors]
    input, hx, cx, *weights = tensors
    _check(input, batch_sizes, hx, cx, *weights)
    if choose_backend(backend, device_type) == "torch":
        # cuDNN refuses a backward of what did not run in training mode; without dropout the mode
        # changes nothing else.
        train = torch.is_grad_enabled()
        output, hy, cy = torch._VF.lstm(
            input, batch_sizes, (hx[None], cx[None]), weights, True, 1, 0.0, train, False
        )
        return output, hy[0], cy[0]
    output, hy, cy, _ = _forward(input, batch_sizes, hx, cx, *weights)
    return output, hy, cy


def _autocast(tensor: Tensor, device_type: str) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _check(
    input: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> None:
    """Refuse what the kernels do not check: shapes, types, devices and the packed layout."""
    if input.dim() != 2:
        raise ValueError(f"input must be [N, E], got {list(input.shape)}")
    if not input.is_floating_point():
        raise ValueError(f"input must be of a floating type, got {input.dtype}")
    if weight_hh.dim() != 2 or weight_hh.shape[0] != 4 * weight_hh.shape[1]:
        raise ValueError(f"weight_hh must be [4H, H], got {list(weight_hh.shape)}")
    # What batch_sizes holds is not known while compiling; the operator looks when it runs.
    compiling = torch.compiler.is_compiling()
    batch = hx.shape[0] if compiling else _check_batch_sizes(batch_sizes, input.shape[0])
    hidden = weight_hh.shape[1]
    expected = {
        "hx": (hx, "[B, H]", (batch, hidden)),
        "cx": (cx, "[B, H]", (batch, hidden)),
        "weight_ih": (weight_ih, "[4H, E]", (4 * hidden, input.shape[1])),
        "weight_hh": (weight_hh, "[4H, H]", (4 * hidden, hidden)),
        "bias_ih": (bias_ih, "[4H]", (4 * hidden,)),
        "bias_hh": (bias_hh, "[4H]", (4 * hidden,)),
    }
    for name, (tensor, letters, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {letters} = {list(shape)}, got {list(tensor.shape)}")
        if tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device} as input is, got {tensor.device}")
        if tensor.dtype != input.dtype:
            raise ValueError(f"{name} must be {input.dtype} as input is, got {tensor.dtype}")


def _check_batch_sizes(batch_sizes: Tensor, tokens: int) -> int:
    """Refuse batch sizes that describe no packed layout of `tokens` rows; return B."""
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.numel() == 0:
        raise ValueError(
            f"batch_sizes must be [T] of int64 with T >= 1, "
            f"got {list(batch_sizes.shape)} of {batch_sizes.dtype}"
        )
    if batch_sizes.device.type != "cpu":
        raise ValueError(f"batch_sizes must be on the CPU, got {batch_sizes.device}")
    sizes = batch_sizes.tolist()
    if sizes[-1] < 1 or any(a < b for a, b in pairwise(sizes)):
        raise ValueError(f"batch_sizes must be positive and never increase, got {sizes}")
    if sum(sizes) != tokens:
        raise ValueError(f"batch_sizes must sum to N = {tokens} rows of input, got {sum(sizes)}")
    return int(sizes[0])
