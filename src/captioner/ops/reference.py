"""The LSTM over packed sequences in plain PyTorch: the readable twin of every faster backend.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size, H hidden
size. Token n reads row input_rows[n] of input, or row n where that is not given. The packed
layout is time-major: row b of step t lies at offsets[t] + b, and only the first batch_sizes[t]
sequences (sorted by length, longest first) still have a step t.

Formulas (Hochreiter & Schmidhuber 1997 with forget gates, in torch.nn.LSTM's order i, f, g, o):
    i, f, o = sigmoid(.), g = tanh(.) of  x W_ih' + b_ih + h W_hh' + b_hh
    c_t = f c_{t-1} + i g,    h_t = o tanh(c_t)
For bfloat16 and float16 the GEMMs take the half type and everything else is float32.

The arguments are those of the operators, by name; see `lstm_packed` for `capacity`. With a leading
K, in all tensors but SHARED, K models are computed one after another.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.ops.models import one_after_another

SHARED = ("batch_sizes", "input_rows")  # by all models of a call
Forward = tuple[Tensor, Tensor, Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class ForwardArguments(NamedTuple):
    """What `captioner::lstm_packed` takes, in its order."""

    input: Tensor  # [U, E]
    batch_sizes: Tensor  # [T] int64 on the CPU
    hx: Tensor  # [B, H]
    cx: Tensor  # [B, H]
    weight_ih: Tensor  # [4H, E]
    weight_hh: Tensor  # [4H, H]
    bias_ih: Tensor  # [4H]
    bias_hh: Tensor  # [4H]
    input_rows: Tensor | None = None  # [N] int64
    capacity: bool = False
    algorithm: int = 0


class BackwardArguments(NamedTuple):
    """What `captioner::lstm_packed_backward` takes, in its order."""

    grad_output: Tensor  # [N, H]
    grad_hy: Tensor  # [B, H]
    grad_cy: Tensor  # [B, H]
    input: Tensor  # [U, E]
    batch_sizes: Tensor  # [T] int64 on the CPU
    hx: Tensor  # [B, H]
    cx: Tensor  # [B, H]
    weight_ih: Tensor  # [4H, E]
    weight_hh: Tensor  # [4H, H]
    output: Tensor  # [N, H] as the forward returned it
    workspace: Tensor  # [5 * N * H] likewise; not changed
    input_rows: Tensor | None = None  # [N] int64
    wants_hx: bool = True  # without it the gradient of hx is 0, which saves the first step's GEMM
    capacity: bool = False
    algorithm: int = 0


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of sums, gates and cells: float32 for half types, otherwise the input's own."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def split_workspace(workspace: Tensor, hidden_size: int) -> tuple[Tensor, Tensor]:
    """Views of a workspace [5 * N * H] as the activated gates [N, 4H] and the cells [N, H]."""
    tokens = workspace.numel() // (5 * hidden_size)
    gates, cells = workspace.split([4 * tokens * hidden_size, tokens * hidden_size])
    return gates.view(tokens, 4 * hidden_size), cells.view(tokens, hidden_size)


def previous_rows(batch_sizes: Tensor) -> Tensor:
    """For every packed row of steps 1.. its sequence's row one step earlier, [N - B] int64."""
    back = torch.repeat_interleave(batch_sizes[:-1], batch_sizes[1:])
    return torch.arange(int(batch_sizes[0]), int(batch_sizes.sum())) - back


def forward(x: ForwardArguments) -> Forward:
    """One layer, one direction: output [N, H], hy [B, H], cy [B, H], workspace [5 * N * H]."""
    if x.weight_hh.dim() == 3:
        return one_after_another(forward, x, SHARED)  # type: ignore[return-value]
    index, hidden, dtype = x.input_rows, x.weight_hh.shape[1], x.input.dtype
    capacity, wide = len(x.input if index is None else index), acc_dtype(dtype)
    sizes, tokens = _sizes_and_tokens(x.batch_sizes, len(x.hx), capacity)
    input = x.input[:tokens] if index is None else x.input[index[:tokens]]
    new = x.input.new_zeros if x.capacity else x.input.new_empty  # padding rows are 0
    workspace, output = new(5 * capacity * hidden, dtype=wide), new(capacity, hidden)
    gates, cells = split_workspace(workspace, hidden)
    h, c = _working_copy(x.hx, dtype), _working_copy(x.cx, wide)

    bias = x.bias_ih.to(wide) + x.bias_hh.to(wide)
    torch.add((input @ x.weight_ih.t()).to(wide), bias, out=gates[:tokens])
    offset = 0
    for size in sizes:
        rows = slice(offset, offset + size)
        step = gates[rows]
        step += h[:size] @ x.weight_hh.t()
        step[:, : 2 * hidden].sigmoid_()
        step[:, 2 * hidden : 3 * hidden].tanh_()
        step[:, 3 * hidden :].sigmoid_()
        i, f, g, o = step.chunk(4, dim=1)
        torch.addcmul(f * c[:size], i, g, out=cells[rows])
        c[:size] = cells[rows]
        h[:size] = (o * cells[rows].tanh()).to(dtype)
        output[rows] = h[:size]
        offset += size
    return output, h, c.to(dtype), workspace


def backward(x: BackwardArguments) -> Backward:
    """Gradients of input, hx, cx, weight_ih, weight_hh and of either bias (they are equal)."""
    if x.weight_hh.dim() == 3:
        return one_after_another(backward, x, SHARED)  # type: ignore[return-value]
    dtype, hidden = x.input.dtype, x.weight_hh.shape[1]
    sizes, tokens = _sizes_and_tokens(x.batch_sizes, len(x.hx), len(x.output))
    gates, cells = (part[:tokens] for part in split_workspace(x.workspace, hidden))
    before = previous_rows(x.batch_sizes).to(x.input.device)
    h_before = torch.cat([x.hx[: sizes[0]], x.output[before]])
    c_before = torch.cat([x.cx[: sizes[0]].to(cells.dtype), cells[before]])

    # Every factor that does not depend on the recurrence is computed for all steps at once; the
    # loop then multiplies the incoming gradients into the same buffer.
    i, f, g, o = gates.chunk(4, dim=1)
    tanh_c = cells.tanh()
    dc_by_dh = o * (1 - tanh_c * tanh_c)
    grad_gates = torch.cat(
        [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], dim=1
    )

    dh, dc = _working_copy(x.grad_hy, cells.dtype), _working_copy(x.grad_cy, cells.dtype)
    offset = tokens
    for size in reversed(sizes):
        rows = slice(offset - size, offset)
        dh_t = dh[:size] + x.grad_output[rows]
        dc_t = torch.addcmul(dc[:size], dh_t, dc_by_dh[rows])
        step = grad_gates[rows].view(size, 4, hidden)
        step[:, :3] *= dc_t.unsqueeze(1)
        step[:, 3] *= dh_t
        dc[:size] = dc_t * f[rows]
        if offset > size or x.wants_hx:
            dh[:size] = grad_gates[rows].to(dtype) @ x.weight_hh
        offset -= size

    if not x.wants_hx:
        dh.zero_()
    narrow = by_row = grad_gates.to(dtype)
    if x.input_rows is not None:
        by_row = _summed_by_row(grad_gates, x.input_rows[:tokens], x.input)
    padding = len(x.input) - len(by_row)
    return (
        F.pad(by_row @ x.weight_ih, (0, 0, 0, padding)),
        dh.to(dtype),
        dc.to(dtype),
        by_row.t() @ x.input[: len(by_row)],
        narrow.t() @ h_before,
        grad_gates.sum(0).to(dtype),
    )


def _sizes_and_tokens(batch_sizes: Tensor, batch: int, tokens: int) -> tuple[list[int], int]:
    """batch_sizes and their sum; ValueError where they exceed the capacities B and N."""
    sizes: list[int] = batch_sizes.tolist()
    if any(a < b for a, b in pairwise(sizes)) or min(sizes) < 0:
        raise ValueError(f"batch_sizes must not be negative and never increase, got {sizes}")
    if sum(sizes) > tokens or sizes[0] > batch:
        raise ValueError(
            f"batch_sizes must sum to at most N = {tokens} and begin with at most B = {batch}, "
            f"got {sizes}"
        )
    return sizes, sum(sizes)


def _summed_by_row(grad_gates: Tensor, input_rows: Tensor, input: Tensor) -> Tensor:
    """Gate gradients [N, 4H] added up for each row of input, [U, 4H] of its type."""
    sums = grad_gates.new_zeros(input.shape[0], grad_gates.shape[1])
    return sums.index_put_((input_rows,), grad_gates, accumulate=True).to(input.dtype)


def _working_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy to compute in, contiguous as the fake kernels promise of what is returned."""
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)
