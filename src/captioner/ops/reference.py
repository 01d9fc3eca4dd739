"""The LSTM over packed sequences in plain PyTorch: the readable twin of every faster backend.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size, H hidden
size. Token n reads row input_rows[n] of input, or row n where that is not given. The packed
layout is time-major: row b of step t lies at offsets[t] + b, and only the first batch_sizes[t]
sequences (sorted by length, longest first) still have a step t.

Formulas (Hochreiter & Schmidhuber 1997 with forget gates, in torch.nn.LSTM's order i, f, g, o):
    i, f, o = sigmoid(.), g = tanh(.) of  x W_ih' + b_ih + h W_hh' + b_hh
    c_t = f c_{t-1} + i g,    h_t = o tanh(c_t)
For bfloat16 and float16 the products take the half type and everything else is float32.

`forward_within` and `backward_within` take the capacity form: see `lstm_packed`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

HALF_TYPES = (torch.bfloat16, torch.float16)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of gates and cells: float32 for half types, otherwise the input's own."""
    return torch.float32 if dtype in HALF_TYPES else dtype


def split_workspace(workspace: Tensor, hidden_size: int) -> tuple[Tensor, Tensor]:
    """Views of a workspace [5 * N * H] as the activated gates [N, 4H] and the cells [N, H]."""
    tokens = workspace.numel() // (5 * hidden_size)
    gates, cells = workspace.split([4 * tokens * hidden_size, tokens * hidden_size])
    return gates.view(tokens, 4 * hidden_size), cells.view(tokens, hidden_size)


def previous_rows(batch_sizes: Tensor) -> Tensor:
    """For every packed row of steps 1.. its sequence's row one step earlier, [N - B] int64."""
    back = torch.repeat_interleave(batch_sizes[:-1], batch_sizes[1:])
    return torch.arange(int(batch_sizes[0]), int(batch_sizes.sum())) - back


def forward(
    input: Tensor,  # [U, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [4H, E]
    weight_hh: Tensor,  # [4H, H]
    bias_ih: Tensor,  # [4H]
    bias_hh: Tensor,  # [4H]
    input_rows: Tensor | None = None,  # [N] int64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer, one direction: output [N, H], hy [B, H], cy [B, H], workspace [5 * N * H]."""
    if input_rows is not None:
        input = input[input_rows]
    tokens, hidden = input.shape[0], weight_hh.shape[1]
    dtype, wide = input.dtype, state_dtype(input.dtype)
    workspace = input.new_empty(5 * tokens * hidden, dtype=wide)
    gates, cells = split_workspace(workspace, hidden)
    output = input.new_empty(tokens, hidden)
    h, c = _working_copy(hx, dtype), _working_copy(cx, wide)

    torch.add((input @ weight_ih.t()).to(wide), (bias_ih.to(wide) + bias_hh.to(wide)), out=gates)
    offset = 0
    for size in batch_sizes.tolist():
        rows = slice(offset, offset + size)
        step = gates[rows]
        step += h[:size] @ weight_hh.t()
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


def backward(
    grad_output: Tensor,  # [N, H]
    grad_hy: Tensor,  # [B, H]
    grad_cy: Tensor,  # [B, H]
    input: Tensor,  # [U, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [4H, E]
    weight_hh: Tensor,  # [4H, H]
    output: Tensor,  # [N, H] as forward returned it
    workspace: Tensor,  # [5 * N * H] as forward returned it; not changed
    input_rows: Tensor | None = None,  # [N] int64
    wants_hx: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, hx, cx, weight_ih, weight_hh and of either bias (they are equal).

    Without `wants_hx` that of hx is 0, which saves the first step's product.
    """
    hidden = weight_hh.shape[1]
    dtype = input.dtype
    gates, cells = split_workspace(workspace, hidden)
    before = previous_rows(batch_sizes).to(input.device)
    h_before = torch.cat([hx, output[before]])
    c_before = torch.cat([cx.to(cells.dtype), cells[before]])

    # Every factor that does not depend on the recurrence is computed for all steps at once; the
    # loop then multiplies the incoming gradients into the same buffer.
    i, f, g, o = gates.chunk(4, dim=1)
    tanh_c = cells.tanh()
    dc_by_dh = o * (1 - tanh_c * tanh_c)
    grad_gates = torch.cat(
        [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], dim=1
    )

    dh, dc = _working_copy(grad_hy, cells.dtype), _working_copy(grad_cy, cells.dtype)
    offset = output.shape[0]
    for size in reversed(batch_sizes.tolist()):
        rows = slice(offset - size, offset)
        dh_t = dh[:size] + grad_output[rows]
        dc_t = torch.addcmul(dc[:size], dh_t, dc_by_dh[rows])
        step = grad_gates[rows].view(size, 4, hidden)
        step[:, :3] *= dc_t.unsqueeze(1)
        step[:, 3] *= dh_t
        dc[:size] = dc_t * f[rows]
        if offset > size or wants_hx:
            dh[:size] = grad_gates[rows].to(dtype) @ weight_hh
        offset -= size

    if not wants_hx:
        dh.zero_()
    narrow = grad_gates.to(dtype)
    read = narrow if input_rows is None else _summed_by_row(grad_gates, input_rows, input)
    return (
        read @ weight_ih,
        dh.to(dtype),
        dc.to(dtype),
        read.t() @ input,
        narrow.t() @ h_before,
        grad_gates.sum(0).to(dtype),
    )


def filled_part(batch_sizes: Tensor, batch: int, tokens: int) -> tuple[Tensor, int, int]:
    """Of a batch in the capacity form: batch_sizes of its steps, its sequences and its tokens.

    ValueError where it does not fit into the room for `batch` sequences and `tokens` tokens.
    """
    sizes = batch_sizes.tolist()
    if any(a < b for a, b in pairwise(sizes)) or min(sizes, default=0) < 0:
        raise ValueError(f"batch_sizes must not be negative and never increase, got {sizes}")
    if sum(sizes) > tokens or max(sizes, default=0) > batch:
        raise ValueError(
            f"batch_sizes must sum to at most N = {tokens} and begin with at most B = {batch}, "
            f"got {sizes}"
        )
    steps = sum(size > 0 for size in sizes)
    return batch_sizes[:steps], max(sizes, default=0), sum(sizes)


def forward_within(
    input: Tensor,  # [U, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [4H, E]
    weight_hh: Tensor,  # [4H, H]
    bias_ih: Tensor,  # [4H]
    bias_hh: Tensor,  # [4H]
    input_rows: Tensor | None = None,  # [N] int64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`forward` of the part that is filled, its results set into tensors of the full room."""
    room, hidden = len(input if input_rows is None else input_rows), weight_hh.shape[1]
    sizes, batch, tokens = filled_part(batch_sizes, len(hx), room)
    output = input.new_zeros(room, hidden)
    hy, cy = _working_copy(hx, hx.dtype), _working_copy(cx, cx.dtype)
    workspace = input.new_zeros(5 * room * hidden, dtype=state_dtype(input.dtype))
    if tokens:
        rows = (input[:tokens], None) if input_rows is None else (input, input_rows[:tokens])
        weights = (weight_ih, weight_hh, bias_ih, bias_hh)
        found = forward(rows[0], sizes, hx[:batch], cx[:batch], *weights, rows[1])
        output[:tokens], hy[:batch], cy[:batch] = found[:3]
        workspace[: len(found[3])] = found[3]
    return output, hy, cy, workspace


def backward_within(
    grad_output: Tensor,  # [N, H]
    grad_hy: Tensor,  # [B, H]
    grad_cy: Tensor,  # [B, H]
    input: Tensor,  # [U, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [4H, E]
    weight_hh: Tensor,  # [4H, H]
    output: Tensor,  # [N, H] as forward_within returned it
    workspace: Tensor,  # [5 * N * H] as forward_within returned it; not changed
    input_rows: Tensor | None = None,  # [N] int64
    wants_hx: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`backward` of the part that is filled; the rest of the room has gradients of 0."""
    sizes, batch, tokens = filled_part(batch_sizes, len(hx), len(output))
    likes = (input, weight_ih, weight_hh)
    grad_input, grad_weight_ih, grad_weight_hh = (x.new_zeros(x.shape) for x in likes)
    grad_bias = weight_ih.new_zeros(len(weight_ih))
    grad_hx, grad_cx = _working_copy(grad_hy, hx.dtype), _working_copy(grad_cy, cx.dtype)
    if not wants_hx:
        grad_hx.zero_()
    if tokens:
        rows = (input[:tokens], None) if input_rows is None else (input, input_rows[:tokens])
        found = backward(
            grad_output[:tokens], grad_hy[:batch], grad_cy[:batch], rows[0], sizes, hx[:batch],
            cx[:batch], weight_ih, weight_hh, output[:tokens],
            workspace[: 5 * tokens * weight_hh.shape[1]], rows[1], wants_hx,
        )  # fmt: skip
        grad_input[: len(found[0])], grad_hx[:batch], grad_cx[:batch] = found[:3]
        grad_weight_ih, grad_weight_hh, grad_bias = found[3:]
    return grad_input, grad_hx, grad_cx, grad_weight_ih, grad_weight_hh, grad_bias


def _summed_by_row(grad_gates: Tensor, input_rows: Tensor, input: Tensor) -> Tensor:
    """Gate gradients [N, 4H] added up for each row of input, [U, 4H] of its type."""
    sums = grad_gates.new_zeros(input.shape[0], grad_gates.shape[1])
    return sums.index_put_((input_rows,), grad_gates, accumulate=True).to(input.dtype)


def _working_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy to compute in, contiguous as the fake kernels promise of what is returned."""
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)
