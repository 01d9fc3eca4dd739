"""`LSTM`: a drop-in for torch.nn.LSTM that runs on ops.lstm_packed.

Shapes: B sequences, T longest length, N packed tokens, E input size, H hidden size, L layers,
D directions (2 when bidirectional).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from captioner.ops import lstm_packed

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
        self, data: Tensor, batch_sizes: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """All layers over packed rows [N, E]: output [N, D * H], (hy, cy) each [L * D, B, H].

        `state` is in the packed order (longest sequence first).
        """
        hx, cx = self._initial_state(data, int(batch_sizes[0])) if state is None else state
        expected = (len(self.all_weights), int(batch_sizes[0]), self.hidden_size)
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
                rows = data if direction == 0 else data[reverse]
                output, hy, cy = self._layer(rows, batch_sizes, hx[k], cx[k], k)
                outputs.append(output if direction == 0 else output[reverse])
                h_out.append(hy)
                c_out.append(cy)
            data = torch.cat(outputs, dim=1) if self.bidirectional else outputs[0]
            if layer < self.num_layers - 1:
                data = F.dropout(data, self.dropout, self.training)
        return data, (torch.stack(h_out), torch.stack(c_out))

    def _layer(
        self, rows: Tensor, batch_sizes: Tensor, hx: Tensor, cx: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights: list[Tensor] = [*self.all_weights[k]]
        weight_ih, weight_hh, *biases = weights
        if not biases:
            biases = [weight_ih.new_zeros(4 * self.hidden_size)] * 2
        return lstm_packed(
            rows, batch_sizes, hx, cx, weight_ih, weight_hh, *biases, backend=self.backend
        )

    def _initial_state(self, data: Tensor, batch: int) -> State:
        zeros = data.new_zeros(len(self.all_weights), batch, self.hidden_size)
        return zeros, zeros


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
