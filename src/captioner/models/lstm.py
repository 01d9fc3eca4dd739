"""`LSTM` and `LSTMCell`: drop-ins for torch.nn.LSTM and LSTMCell that run on ops.lstm_packed.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size, H hidden
size, L layers, D directions (2 when bidirectional).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from captioner.ops import lstm_packed, lstm_step

State = tuple[Tensor, Tensor]


class LSTM(nn.LSTM):
    """torch.nn.LSTM's arguments, parameters, state_dict and calls, over `ops.lstm_packed`.

    Takes a PackedSequence, padded [T, B, E] (or [B, T, E] with batch_first) or unbatched [T, E];
    the state is (h, c), each [L * D, B, H]. Packed input is computed as it is: nothing is padded.
    Projections (proj_size) are refused with a ValueError.
    """

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.proj_size:
            raise ValueError(f"proj_size must be 0, got {self.proj_size}")
        self.backend = backend

    def forward(  # type: ignore[override]
        self, input: Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run all layers; the output has the form of the input with E replaced by D * H."""
        if isinstance(input, PackedSequence):
            return self._forward_sequence(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"input must have 2 or 3 dimensions, got {list(input.shape)}")
        batched = input.dim() == 3
        steps = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            steps = steps.transpose(0, 1)
        if hx is not None and not batched:
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        length, batch = steps.shape[:2]
        if length == 0 or batch == 0:
            raise ValueError(f"input must have a step and a sequence, got {list(input.shape)}")
        batch_sizes = torch.full((length,), batch, dtype=torch.int64)
        output, state = self.forward_packed(steps.reshape(length * batch, -1), batch_sizes, hx)
        padded = output.view(length, batch, -1)
        if not batched:
            return padded.squeeze(1), (state[0].squeeze(1), state[1].squeeze(1))
        return padded.transpose(0, 1) if self.batch_first else padded, state

    def _forward_sequence(
        self, input: PackedSequence, hx: State | None
    ) -> tuple[PackedSequence, State]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None and sorted_indices is not None:
            hx = (hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices))
        output, (hy, cy) = self.forward_packed(data, batch_sizes, hx)
        if unsorted_indices is not None:
            hy, cy = hy.index_select(1, unsorted_indices), cy.index_select(1, unsorted_indices)
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), (hy, cy)

    def forward_packed(
        self,
        data: Tensor,  # [U, E]
        batch_sizes: Tensor,  # [T] int64 on the CPU
        state: Sequence[Tensor] | None = None,  # h and c, each [L * D, B, H]
        *,
        input_rows: Tensor | None = None,  # [N] int64
        between: Callable[[Tensor], Tensor] | None = None,
        weights_hh: Sequence[Tensor] | None = None,  # L * D of [4H, H]
        capacity: bool = False,
    ) -> tuple[Tensor, State]:
        """All layers over packed rows: output [N, D * H], (hy, cy) each [L * D, B, H].

        `state` is in the packed order (longest sequence first). Token n reads row input_rows[n] of
        `data`, or row n where `input_rows` is not given: tokens that read the same row share its
        product with the first layer's weights. `between` changes the rows between two layers, in
        the place of dropout; `weights_hh` take the place of the recurrent weights. `capacity` as in
        `lstm_packed`: `state` must then be given, whose B is the capacity for sequences, and the
        LSTM has one direction; ValueError otherwise.
        """
        if capacity and (state is None or self.bidirectional):
            raise ValueError("capacity needs a state, and an LSTM of one direction")
        batch = len(state[0][0]) if capacity and state is not None else int(batch_sizes[0])
        expected = (len(self.all_weights), batch, self.hidden_size)
        hx, cx = [data.new_zeros(expected)] * 2 if state is None else state
        for name, tensor in (("hx", hx), ("cx", cx)):
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"{name} must be [L * D, B, H] = {list(expected)}, got {list(tensor.shape)}"
                )
        directions = 2 if self.bidirectional else 1
        reverse = reversed_rows(batch_sizes).to(data.device) if self.bidirectional else None
        h_out: list[Tensor] = []
        c_out: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                rows, index = data, input_rows
                if direction == 1:
                    rows, index = _reordered(data, input_rows, reverse)
                weights = self._weights(k)
                if weights_hh is not None:
                    weights[1] = weights_hh[k]
                arguments = (rows, batch_sizes, hx[k], cx[k], *weights)
                output, hy, cy = lstm_packed(
                    *arguments, input_rows=index, capacity=capacity, backend=self.backend
                )
                outputs.append(output if direction == 0 else output[reverse])
                h_out.append(hy)
                c_out.append(cy)
            data = torch.cat(outputs, dim=1) if self.bidirectional else outputs[0]
            input_rows = None
            if layer < self.num_layers - 1:
                data = between(data) if between else F.dropout(data, self.dropout, self.training)
        return data, (torch.stack(h_out), torch.stack(c_out))

    def project(self, data: Tensor) -> Tensor:
        """Rows [U, E] times the first layer's weights, its biases added: [U, 4H] for `step`."""
        weight_ih, _, bias = self.first_layer()
        return F.linear(data, weight_ih, bias)

    def first_layer(self) -> tuple[Tensor, Tensor, Tensor]:
        """weight_ih, weight_hh and the sum of both biases."""
        weight_ih, weight_hh, bias_ih, bias_hh = self._weights(0)
        return weight_ih, weight_hh, bias_ih + bias_hh

    @torch.no_grad()
    def step(self, sums: Tensor, rows: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, State]:
        """One step of decoding: output [B, H] and the state, each [L, B, H]; no gradients.

        Sequence b reads row rows[b] of `sums` [U, 4H] as `project` gives it: the first layer then
        costs one product with its recurrent weights and one pass over its gates. ValueError when
        bidirectional.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional LSTM cannot go step by step")
        hx, cx = state
        weight_hh = self._weights(0)[1]
        h, c = lstm_step(sums, rows, hx[0], cx[0], weight_hh, backend=self.backend)
        h_out, c_out = [h], [c]
        one = torch.tensor([len(rows)])
        for k in range(1, self.num_layers):
            _, h, c = lstm_packed(h, one, hx[k], cx[k], *self._weights(k), backend=self.backend)
            h_out.append(h)
            c_out.append(c)
        return h, (torch.stack(h_out), torch.stack(c_out))

    def _weights(self, k: int) -> list[Tensor]:
        """weight_ih, weight_hh, bias_ih, bias_hh of layer and direction k."""
        weights: list[Tensor] = [*self.all_weights[k]]
        if len(weights) == 2:
            weights += [weights[0].new_zeros(4 * self.hidden_size)] * 2
        return weights


class LSTMCell(nn.LSTMCell):
    """torch.nn.LSTMCell's arguments, parameters, state_dict and calls, over `ops.lstm_packed`."""

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """One step from [B, E] or [E] and the state (h, c): the new state, each [B, H] or [H]."""
        if input.dim() not in (1, 2):
            raise ValueError(f"input must have 1 or 2 dimensions, got {list(input.shape)}")
        rows = input if input.dim() == 2 else input.unsqueeze(0)
        if len(rows) == 0:
            raise ValueError(f"input must have a sequence, got {list(input.shape)}")
        if hx is None:
            zeros = rows.new_zeros(len(rows), self.hidden_size)
            hx = (zeros, zeros)
        elif input.dim() == 1:
            hx = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        biases: list[Tensor] = [self.bias_ih, self.bias_hh]
        if not self.bias:
            biases = [rows.new_zeros(4 * self.hidden_size)] * 2
        one = torch.tensor([len(rows)])
        _, h, c = lstm_packed(
            rows, one, *hx, self.weight_ih, self.weight_hh, *biases, backend=self.backend
        )
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


def _reordered(
    data: Tensor, input_rows: Tensor | None, order: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What token order[n] reads, for every n: the rows moved, or only their index."""
    if input_rows is None:
        return data[order], None
    return data, input_rows[order]


def reversed_rows(batch_sizes: Tensor) -> Tensor:
    """For every packed row the row of the same sequence read backwards, [N] int64 on the CPU.

    The permutation is its own inverse.
    """
    sizes = batch_sizes.tolist()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), batch_sizes.cumsum(0)[:-1]])
    step = torch.repeat_interleave(torch.arange(len(sizes)), batch_sizes)
    sequence = torch.arange(int(batch_sizes.sum())) - offsets[step]
    lengths = (batch_sizes.unsqueeze(1) > torch.arange(sizes[0])).sum(0)
    return offsets[lengths[sequence] - 1 - step] + sequence
