"""`lstm_packed`: one LSTM layer in one direction over packed sequences, whatever computes it.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size, H hidden
size.

The backend "fused" is the operator `captioner::lstm_packed` of csrc/; "reference" is its twin
`captioner::lstm_packed_reference`, plain PyTorch of ops/reference.py. Both get their fake kernels
(for torch.compile) and autograd here. "torch" bypasses them for ATen's or cuDNN's LSTM. On a CUDA
device "fused" goes one of several ways through the steps: see ops/paths.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from captioner.ops import padded, reference
from captioner.ops.backend import FUSED, choose_backend
from captioner.ops.extension import ABSENT
from captioner.ops.paths import choose_path

Outputs = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("captioner::lstm_packed_reference", mutates_args=())
def _reference(
    input: Tensor,  # [U, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [4H, E]
    weight_hh: Tensor,  # [4H, H]
    bias_ih: Tensor,  # [4H]
    bias_hh: Tensor,  # [4H]
    input_rows: Tensor | None = None,  # [N] int64
    capacity: bool = False,
    path: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = reference.forward_within if capacity else reference.forward
    if not capacity:
        tokens = input.shape[0] if input_rows is None else input_rows.numel()
        _check_batch_sizes(batch_sizes, tokens)  # a compiled caller could not
    return run(input, batch_sizes, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, input_rows)


@torch.library.custom_op("captioner::lstm_packed_reference_backward", mutates_args=())
def _reference_backward(
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
    input_rows: Tensor | None = None,
    wants_hx: bool = True,
    capacity: bool = False,
    path: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = reference.backward_within if capacity else reference.backward
    return run(
        grad_output, grad_hy, grad_cy, input, batch_sizes, hx, cx, weight_ih, weight_hh, output,
        workspace, input_rows, wants_hx,
    )  # fmt: skip


def _fake(
    input: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    input_rows: Tensor | None = None,
    capacity: bool = False,
    path: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens = input.shape[0] if input_rows is None else input_rows.shape[0]
    hidden = weight_hh.shape[1]
    workspace = input.new_empty(5 * tokens * hidden, dtype=reference.state_dtype(input.dtype))
    shape = (hx.shape[0], hidden)
    return (
        input.new_empty(tokens, hidden),
        input.new_empty(shape),
        input.new_empty(shape),
        workspace,
    )


def _fake_backward(
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
    input_rows: Tensor | None = None,
    wants_hx: bool = True,
    capacity: bool = False,
    path: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    likes = (input, hx, cx, weight_ih, weight_hh)
    bias = weight_ih.new_empty(weight_ih.shape[0])
    return (*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in likes), bias)  # type: ignore[return-value]


def _register(name: str) -> None:
    """Fake kernels and autograd of an operator and of its backward, whoever has their kernels."""
    backward = getattr(torch.ops.captioner, f"{name}_backward").default

    def save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        input, batch_sizes, hx, cx, weight_ih, weight_hh, _, _, input_rows, *switches = inputs
        ctx.switches = switches
        out, _, _, workspace = output
        ctx.mark_non_differentiable(workspace)
        ctx.set_materialize_grads(False)  # else zeros as large as the workspace are made for it
        ctx.save_for_backward(
            input, batch_sizes, hx, cx, weight_ih, weight_hh, out, workspace, input_rows
        )

    def gradients(ctx, grad_output, grad_hy, grad_cy, _grad_workspace):  # type: ignore[no-untyped-def]
        _, _, hx, cx, _, _, output, _, _ = ctx.saved_tensors
        pairs = ((grad_output, output), (grad_hy, hx), (grad_cy, cx))
        wanted = [torch.zeros_like(x) if grad is None else grad for grad, x in pairs]
        found = backward(*wanted, *ctx.saved_tensors, ctx.needs_input_grad[2], *ctx.switches)
        grad_input, grad_hx, grad_cx, grad_weight_ih, grad_weight_hh, grad_bias = found
        # The two biases share one gradient, but an accumulated .grad must not share memory.
        return (
            grad_input, None, grad_hx, grad_cx, grad_weight_ih, grad_weight_hh, grad_bias,
            grad_bias.clone(), None, *(None for _ in ctx.switches),
        )  # fmt: skip

    def refuse(ctx, *gradients):  # type: ignore[no-untyped-def]
        raise NotImplementedError(
            "lstm_packed has no second derivative; for a double backward take backend='torch' "
            "without cuDNN"
        )

    forward_name = f"captioner::{name}"
    torch.library.register_fake(forward_name, _fake)
    torch.library.register_fake(f"{forward_name}_backward", _fake_backward)
    torch.library.register_autograd(forward_name, gradients, setup_context=save)
    torch.library.register_autograd(
        f"{forward_name}_backward", refuse, setup_context=lambda ctx, inputs, output: None
    )


_register("lstm_packed_reference")
if ABSENT is None:
    _register("lstm_packed")


def lstm_packed(
    input: Tensor,  # [U, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU; with capacity on the device
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [4H, E]
    weight_hh: Tensor,  # [4H, H]
    bias_ih: Tensor,  # [4H]
    bias_hh: Tensor,  # [4H]
    *,
    input_rows: Tensor | None = None,  # [N] int64
    capacity: bool = False,
    backend: str = "auto",
) -> Outputs:
    """One LSTM layer over packed sequences: output [N, H], hy [B, H], cy [B, H].

    The layout is that of torch.nn.utils.rnn.PackedSequence, gates in the order i, f, g, o. Token n
    reads row input_rows[n] of `input`, or row n where `input_rows` is not given: tokens that read
    the same row, as the same word's do, share its product with weight_ih.

    With `capacity`, for CUDA graphs, the shapes are room of which a batch fills a part: batch_sizes
    lies where `input` does, may begin with fewer than B, end in zeros and sum to less than N. Rows
    of output beyond are 0, and a sequence without a step keeps its state. Nothing is read on the
    host where the device is a GPU.

    Under autocast all but float64 is cast to the autocast type first, as cuDNN's LSTM does. Raises
    ValueError naming the tensor, what it is and what it should be; ConfigError for a backend that
    is unknown or not built.
    """
    device_type = input.device.type
    tensors = [input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh]
    if torch.is_autocast_enabled(device_type):
        tensors = [_autocast(tensor, device_type) for tensor in tensors]
    input, hx, cx, *weights = tensors
    _check(input, batch_sizes, input_rows, hx, cx, *weights, capacity=capacity)
    chosen = choose_backend(backend, device_type)
    if chosen == "torch":
        rows = input if input_rows is None else input[input_rows]
        run = padded.lstm_within if capacity else _packed_by_torch
        return run(rows, batch_sizes, hx, cx, weights)
    operators, path = torch.ops.captioner, 0
    if chosen in FUSED and device_type == "cuda":
        path = choose_path(chosen, weights[1], len(hx), capacity=capacity)
    operator = operators.lstm_packed if chosen in FUSED else operators.lstm_packed_reference
    output, hy, cy, _ = operator(input, batch_sizes, hx, cx, *weights, input_rows, capacity, path)
    return output, hy, cy


def _packed_by_torch(
    rows: Tensor, batch_sizes: Tensor, hx: Tensor, cx: Tensor, weights: list[Tensor]
) -> Outputs:
    # cuDNN refuses a backward of what did not run in training mode; without dropout the mode
    # changes nothing else.
    train = torch.is_grad_enabled()
    output, hy, cy = torch._VF.lstm(
        rows, batch_sizes, (hx[None], cx[None]), weights, True, 1, 0.0, train, False
    )
    return output, hy[0], cy[0]


def _autocast(tensor: Tensor, device_type: str) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _check(
    input: Tensor,
    batch_sizes: Tensor,
    input_rows: Tensor | None,
    hx: Tensor,
    cx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    *,
    capacity: bool,
) -> None:
    """Refuse what does not fit, for all backends alike: shapes, types, devices, packed layout."""
    if input.dim() != 2:
        raise ValueError(f"input must be [U, E], got {list(input.shape)}")
    if not input.is_floating_point():
        raise ValueError(f"input must be of a floating type, got {input.dtype}")
    if weight_hh.dim() != 2 or weight_hh.shape[0] != 4 * weight_hh.shape[1]:
        raise ValueError(f"weight_hh must be [4H, H], got {list(weight_hh.shape)}")
    # What batch_sizes holds is not known while compiling; the operator looks when it runs.
    compiling = torch.compiler.is_compiling()
    tokens = input.shape[0] if input_rows is None else _check_rows(input_rows, input)
    if capacity:
        _check_room(batch_sizes, input)
    batch = hx.shape[0] if compiling or capacity else _check_batch_sizes(batch_sizes, tokens)
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


def _check_rows(input_rows: Tensor, input: Tensor) -> int:
    """Refuse an index of another form; return N. What it holds is for the kernel to check."""
    if input_rows.dim() != 1 or input_rows.dtype != torch.int64:
        raise ValueError(
            f"input_rows must be [N] of int64, got {list(input_rows.shape)} of {input_rows.dtype}"
        )
    if input_rows.device != input.device:
        raise ValueError(f"input_rows must be on {input.device}, got {input_rows.device}")
    return input_rows.shape[0]


def _check_room(batch_sizes: Tensor, input: Tensor) -> None:
    """Refuse batch sizes of another form or place; what they hold is for the kernel to check."""
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise ValueError(
            f"batch_sizes must be [T] of int64, "
            f"got {list(batch_sizes.shape)} of {batch_sizes.dtype}"
        )
    if batch_sizes.device != input.device:
        raise ValueError(
            f"batch_sizes must be on {input.device} with capacity, got {batch_sizes.device}"
        )


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
        raise ValueError(f"batch_sizes must sum to N = {tokens}, got {sum(sizes)}")
    return int(sizes[0])
