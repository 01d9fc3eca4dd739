"""Recurrent layers over packed rows that can take the LSTM's place in the language model.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size, H hidden
size, L layers.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.cells import ROUNDS, LayerNormLSTM, MogrifierLSTM
from captioner.models.lstm import LSTM
from captioner.ops import dropout, gru_packed

Between = Callable[[Tensor], Tensor]


class _Packed(nn.RNNBase):
    """What the GRU and the vanilla RNN share: all layers over packed rows."""

    @abstractmethod
    def layer(
        self,
        rows: Tensor,  # [U, E]
        batch_sizes: Tensor,  # [T] int64 on the CPU
        hx: Tensor,  # [B, H]
        weights: list[Tensor],  # weight_ih, weight_hh, bias_ih, bias_hh
        input_rows: Tensor | None,  # [N] int64
    ) -> tuple[Tensor, Tensor]:
        """Output [N, H] and hy [B, H] of one layer."""

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
        rows, batch = data, int(batch_sizes[0])
        hx = rows.new_zeros(self.num_layers, batch, self.hidden_size) if state is None else state[0]
        last = []
        for k in range(self.num_layers):
            weights: list[Tensor] = [*self.all_weights[k]]
            if weights_hh is not None:
                weights[1] = weights_hh[k]
            rows, hy = self.layer(rows, batch_sizes, hx[k], weights, None if k else input_rows)
            last.append(hy)
            if k < self.num_layers - 1:
                rows = between(rows) if between else F.dropout(rows, self.dropout, self.training)
        return rows, (torch.stack(last),)


class GRU(_Packed, nn.GRU):
    """torch.nn.GRU (Cho et al. 2014; its reset gate acts on the product) over `ops.gru_packed`."""

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend

    def layer(
        self,
        rows: Tensor,
        batch_sizes: Tensor,
        hx: Tensor,
        weights: list[Tensor],
        input_rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `_Packed`."""
        return gru_packed(
            rows, batch_sizes, hx, *weights, input_rows=input_rows, backend=self.backend
        )


class RNN(_Packed, nn.RNN):
    """torch.nn.RNN with tanh (Elman 1990) over packed rows, one call of ATen a layer."""

    def layer(
        self,
        rows: Tensor,
        batch_sizes: Tensor,
        hx: Tensor,
        weights: list[Tensor],
        input_rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `_Packed`."""
        rows = rows if input_rows is None else rows[input_rows]
        train = torch.is_grad_enabled()  # cuDNN has no backward for what ran in inference mode
        own = hx[None].to(rows.dtype)
        output, hy = torch._VF.rnn_tanh(rows, batch_sizes, own, weights, True, 1, 0.0, train, False)
        return output, hy[0]


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
    """A recurrent network by its name, ValueError for an unknown one; `backend` is the LSTM's and
    the GRU's, `rounds` the mogrifier's."""
    if kind == "lstm":
        return LSTM(input_size, hidden_size, num_layers, dropout=dropout, backend=backend)
    if kind == "gru":
        return GRU(input_size, hidden_size, num_layers, dropout=dropout, backend=backend)
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
