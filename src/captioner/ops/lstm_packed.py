"""`lstm_packed`: one LSTM layer in one direction over packed sequences, by any backend.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size, H hidden
size.

The backend "fused" is the operator `captioner::lstm_packed` of csrc/; "reference" is its twin
`captioner::lstm_packed_reference`, plain PyTorch of ops/reference.py. Both get their fake kernels
(for torch.compile) and autograd here. "torch" bypasses them for ATen's or cuDNN's LSTM. On a CUDA
device "fused" is one of several algorithms: see ops/algorithms.py.

Both operators also take K models at once, all tensors but batch_sizes and input_rows with a leading
K (on a CPU without `capacity`): what `lstm_packed` calls under torch.vmap.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from captioner.ops import padded, reference
from captioner.ops.algorithms import Algorithm, choose_algorithm
from captioner.ops.backend import FUSED, choose_backend
from captioner.ops.checks import check_index, check_like, refuse_double_backward
from captioner.ops.extension import ABSENT
from captioner.ops.models import register_models
from captioner.ops.reference import SHARED, BackwardArguments, ForwardArguments

Outputs = tuple[Tensor, Tensor, Tensor]
# As in csrc/ops.cpp.
_BOTH = "Tensor input, Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih, Tensor weight_hh"
_SWITCHES = "bool capacity=False, int algorithm=0"
_FORWARD = (
    f"({_BOTH}, Tensor bias_ih, Tensor bias_hh, Tensor? input_rows=None, {_SWITCHES})"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    f"(Tensor grad_output, Tensor grad_hy, Tensor grad_cy, {_BOTH}, Tensor output, "
    f"Tensor workspace, Tensor? input_rows=None, bool wants_hx=True, {_SWITCHES})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("captioner::lstm_packed_reference", mutates_args=(), schema=_FORWARD)
def _reference(*args: Any, **kwargs: Any) -> reference.Forward:
    x = ForwardArguments(*args, **kwargs)
    if not x.capacity:  # a compiled caller could not check it
        _check_batch_sizes(x.batch_sizes, _tokens(x))
    return reference.forward(x)


@torch.library.custom_op(
    "captioner::lstm_packed_reference_backward", mutates_args=(), schema=_BACKWARD
)
def _reference_backward(*args: Any, **kwargs: Any) -> reference.Backward:
    return reference.backward(BackwardArguments(*args, **kwargs))


def _tokens(x: ForwardArguments) -> int:
    return x.input.shape[-2] if x.input_rows is None else x.input_rows.shape[0]


def _fake(*args: Any, **kwargs: Any) -> reference.Forward:
    x = ForwardArguments(*args, **kwargs)
    *models, _, hidden = x.weight_hh.shape
    batch, tokens, wide = x.hx.shape[-2], _tokens(x), reference.acc_dtype(x.input.dtype)
    shapes = ((tokens, hidden), (batch, hidden), (batch, hidden))
    output, hy, cy = (x.input.new_empty((*models, *shape)) for shape in shapes)
    return output, hy, cy, x.input.new_empty((*models, 5 * tokens * hidden), dtype=wide)


def _fake_backward(*args: Any, **kwargs: Any) -> reference.Backward:
    x = BackwardArguments(*args, **kwargs)
    likes = (x.input, x.hx, x.cx, x.weight_ih, x.weight_hh, x.weight_ih[..., 0])
    return tuple(torch.empty_like(y, memory_format=torch.contiguous_format) for y in likes)  # type: ignore[return-value]


def _register(name: str) -> None:
    """Fake kernels and autograd of an operator and of its backward, in Python or in csrc/."""
    backward = getattr(torch.ops.captioner, f"{name}_backward").default

    def save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        x = ForwardArguments(*inputs)
        ctx.switches = (x.capacity, x.algorithm)
        ctx.mark_non_differentiable(output[3])
        ctx.set_materialize_grads(False)  # else zeros as large as the workspace are made for it
        ctx.save_for_backward(*x[:6], output[0], output[3], x.input_rows)

    def gradients(ctx, grad_output, grad_hy, grad_cy, _grad_workspace):  # type: ignore[no-untyped-def]
        _, _, hx, cx, _, _, output, _, _ = ctx.saved_tensors
        pairs = ((grad_output, output), (grad_hy, hx), (grad_cy, cx))
        wanted = [torch.zeros_like(x) if grad is None else grad for grad, x in pairs]
        found = backward(*wanted, *ctx.saved_tensors, ctx.needs_input_grad[2], *ctx.switches)
        grad_input, *of_state_and_weights, grad_bias = found
        # The two biases share one gradient, but an accumulated .grad must not share memory.
        of_biases = (grad_bias, grad_bias.clone())
        return (grad_input, None, *of_state_and_weights, *of_biases, None, None, None)

    forward_name = f"captioner::{name}"
    torch.library.register_fake(forward_name, _fake)
    torch.library.register_fake(f"{forward_name}_backward", _fake_backward)
    torch.library.register_autograd(forward_name, gradients, setup_context=save)
    advice = "for a double backward take backend='torch' without cuDNN"
    refuse_double_backward(f"{forward_name}_backward", advice)
    forward = getattr(torch.ops.captioner, name).default
    register_models(forward_name, forward, ForwardArguments._fields, SHARED)


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
    the same row, as the same word's do, share its projection by weight_ih.

    With `capacity`, for CUDA graphs, the shapes are static and a batch fills a part of them:
    batch_sizes is on the device of `input`, may begin with fewer than B, end in zeros and sum to
    less than N. Padding rows of output are 0, and a sequence without a step keeps its state. On a
    GPU nothing synchronises with the host.

    Under torch.vmap over K models, which must read the same tokens, it is one call of the operator.
    Under autocast all but float64 is cast to the autocast type first, as cuDNN's LSTM does. Raises
    ValueError naming the tensor, what it is and what it should be; ConfigError for a backend that
    is unknown or not built.
    """
    device_type = input.device.type
    tensors = [input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh]
    if torch.is_autocast_enabled(device_type):
        tensors = [_autocast(tensor, device_type) for tensor in tensors]
    input, hx, cx, *weights = tensors
    arguments: tuple[Any, ...] = (input, batch_sizes, hx, cx, *weights, input_rows, capacity)
    x = ForwardArguments(*arguments)
    _check(x)
    chosen = choose_backend(backend, device_type)
    if chosen == "torch":
        rows = input if input_rows is None else input[input_rows]
        run = padded.lstm_with_capacity if capacity else _packed_by_torch
        return run(rows, batch_sizes, hx, cx, weights)
    algorithm = Algorithm.plain
    if chosen in FUSED and device_type == "cuda":
        algorithm = choose_algorithm(chosen, x.weight_hh, len(hx), capacity=capacity)
    operators = torch.ops.captioner
    operator = operators.lstm_packed if chosen in FUSED else operators.lstm_packed_reference
    output, hy, cy, _ = operator(*arguments, int(algorithm))
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


def _check(x: ForwardArguments) -> None:
    """Refuse what does not fit, for all backends alike: shapes, types, devices, packed layout.

    What index tensors hold is for the kernel to check.
    """
    input, weight_hh = x.input, x.weight_hh
    if input.dim() != 2:
        raise ValueError(f"input must be [U, E], got {list(input.shape)}")
    if not input.is_floating_point():
        raise ValueError(f"input must be of a floating type, got {input.dtype}")
    if weight_hh.dim() != 2 or weight_hh.shape[0] != 4 * weight_hh.shape[1]:
        raise ValueError(f"weight_hh must be [4H, H], got {list(weight_hh.shape)}")
    tokens = input.shape[0]
    if x.input_rows is not None:
        check_index("input_rows", "[N] of int64", x.input_rows, input.device)
        tokens = x.input_rows.shape[0]
    batch = x.hx.shape[0]
    if x.capacity:
        where = f"{input.device} with capacity"
        check_index("batch_sizes", "[T] of int64", x.batch_sizes, input.device, where=where)
    elif not torch.compiler.is_compiling():  # the operator checks it when it runs
        batch = _check_batch_sizes(x.batch_sizes, tokens)
    hidden = weight_hh.shape[1]
    expected = {
        "hx": (x.hx, "[B, H]", (batch, hidden)),
        "cx": (x.cx, "[B, H]", (batch, hidden)),
        "weight_ih": (x.weight_ih, "[4H, E]", (4 * hidden, input.shape[1])),
        "weight_hh": (weight_hh, "[4H, H]", (4 * hidden, hidden)),
        "bias_ih": (x.bias_ih, "[4H]", (4 * hidden,)),
        "bias_hh": (x.bias_hh, "[4H]", (4 * hidden,)),
    }
    check_like(expected, "input", input)


def _check_batch_sizes(batch_sizes: Tensor, tokens: int) -> int:
    """Refuse batch sizes that describe no packed layout of `tokens` rows; return B."""
    form, cpu = "[T] of int64 with T >= 1", torch.device("cpu")
    check_index("batch_sizes", form, batch_sizes, cpu, 1, "the CPU")
    sizes = batch_sizes.tolist()
    if sizes[-1] < 1 or any(a < b for a, b in pairwise(sizes)):
        raise ValueError(f"batch_sizes must be positive and never increase, got {sizes}")
    if sum(sizes) != tokens:
        raise ValueError(f"batch_sizes must sum to N = {tokens}, got {sum(sizes)}")
    return int(sizes[0])
