"""Recurrent layers over packed rows that can take the LSTM's place in the language model.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size, H hidden
size, L layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.cells import ROUNDS, LayerNormLSTM, MogrifierLSTM
from captioner.models.lstm import LSTM
from captioner.ops import dropout

Between = Callable[[Tensor], Tensor]


class _Packed(nn.RNNBase):
    """What torch's GRU and RNN share: all layers over packed rows, one call of ATen a layer."""

    def forward_packed(
        self,
        data: Tensor,  # [U, E]
        batch_sizes: Tensor,  # [T] int64 on the CPU
        state: Sequence[Tensor] | None = None,  # h [L, B, H]
        *,
        input_rows: Tensor | None = None,  # [N] int64
        between: Between | None = None,
        weights_hh: Sequence[Tensor] | None = None,  # L of [gates * H, H]
        capacity: bool = False,
    ) -> tuple[Tensor, tuple[Tensor]]:
        """Output [N, H] and the state (h [L, B, H],); arguments as `LSTM.forward_packed`.

        ValueError with `capacity`: torch reads these networks' batch_sizes on the host.
        """
        if capacity:
            raise ValueError(f"capacity needs an LSTM, this is {type(self).__name__}")
        rows = data if input_rows is None else data[input_rows]
        batch = int(batch_sizes[0])
        hx = rows.new_zeros(self.num_layers, batch, self.hidden_size) if state is None else state[0]
        train = torch.is_grad_enabled()  # cuDNN has no backward for what ran in inference mode
        call = torch._VF.gru if isinstance(self, nn.GRU) else torch._VF.rnn_tanh
        last = []
        for k in range(self.num_layers):
            own = hx[k : k + 1].to(rows.dtype)
            weights: Any = [*self.all_weights[k]]
            if weights_hh is not None:
                weights[1] = weights_hh[k]
            rows, hy = call(rows, batch_sizes, own, weights, True, 1, 0.0, train, False)
            last.append(hy)
            if k < self.num_layers - 1:
                rows = between(rows) if between else F.dropout(rows, self.dropout, self.training)
        return rows, (torch.cat(last),)


class GRU(_Packed, nn.GRU):
    """torch.nn.GRU (Cho et al. 2014; its reset gate acts on the product) over packed rows."""


class RNN(_Packed, nn.RNN):
    """torch.nn.RNN with tanh (Elman 1990) over packed rows."""


RNN_KINDS = ("lstm", "gru", "rnn_tanh", "layer_norm_lstm", "mogrifier_lstm")
Rnn = LSTM | GRU | RNN | LayerNormLSTM | MogrifierLSTM


def make_rnn(
    kind: str,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    *,
    dropout: float,
    backend: str,
    rounds: int = ROUNDS,
) -> Rnn:
    """A recurrent network by its name, ValueError for an unknown one; `backend` is the LSTM's,
    `rounds` the mogrifier's."""
    if kind == "lstm":
        return LSTM(input_size, hidden_size, num_layers, dropout=dropout, backend=backend)
    if kind == "gru":
        return GRU(input_size, hidden_size, num_layers, dropout=dropout)
    if kind == "rnn_tanh":
        return RNN(input_size, hidden_size, num_layers, dropout=dropout)
    if kind == "layer_norm_lstm":
        return LayerNormLSTM(input_size, hidden_size, num_layers, dropout=dropout)
    if kind == "mogrifier_lstm":
        return MogrifierLSTM(input_size, hidden_size, num_layers, dropout=dropout, rounds=rounds)
    raise ValueError(f"kind must be one of {', '.join(RNN_KINDS)}, got {kind!r}")


def dropped_weights_hh(rnn: Rnn, rate: float) -> list[Tensor] | None:
    """The recurrent weights of each layer with dropout (DropConnect; Merity et al. 2017), drawn
    once for all steps that are computed with them; None in evaluation or at a rate of 0."""
    if not rnn.training or rate == 0:
        return None
    return [dropout(weights[1], rate, True) for weights in rnn.all_weights]
