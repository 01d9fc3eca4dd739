"""Recurrent layers in PyTorch's own operators, without packed sequences.

Shapes: N sequences, P steps of a prefix, E input size, H hidden, L layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from captioner.errors import ConfigError
from captioner.models.language_model import State
from captioner.models.lstm import LSTM
from captioner.models.rnn import GRU, RNN

CELLS: dict[str, Any] = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
}


class PlainRnn(nn.Module):
    """The layers of an `LSTM`, `GRU` or `RNN` of models/, one step at a time, on its weights;
    ConfigError for other recurrent layers."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        if not isinstance(rnn, LSTM | GRU | RNN):
            raise ConfigError(
                f"the model's rnn.kind is one that ONNX has no form of ({type(rnn).__name__})"
            )
        self.kind, self.hidden_size = rnn.mode, rnn.hidden_size
        # Of the layers, which cannot be traced: weight_ih, weight_hh and the biases of each.
        self.layers = nn.ModuleList(nn.ParameterList(one) for one in rnn.all_weights)

    def forward(self, rows: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, State]:
        """One step over rows [N, E]: output [N, H], new state, each tensor [L, N, H]."""
        after: list[tuple[Tensor, ...]] = []
        weights: Any
        for k, weights in enumerate(self.layers):
            before = tuple(one[k] for one in state)
            new = CELLS[self.kind](rows, before if len(before) > 1 else before[0], *weights)
            after.append(new if isinstance(new, tuple) else (new,))
            rows = after[-1][0]
        return rows, tuple(torch.stack(parts) for parts in zip(*after, strict=True))

    def zeros(self, like: Tensor) -> State:
        """The state before rows like [N, ...]."""
        zeros = like.new_zeros(len(self.layers), like.shape[0], self.hidden_size)
        return (zeros, zeros.clone()) if self.kind == "LSTM" else (zeros,)

    def read(self, embeddings: Tensor) -> State:
        """The state after embeddings [P, N, E]; a loop, because a grid of regions is long."""

        def one_more(position: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            embedding = embeddings.index_select(0, position.unsqueeze(0)).squeeze(0)
            return position + 1, *self(embedding, state)[1]

        def more(position: Tensor, *_: Tensor) -> Tensor:
            return position < embeddings.shape[0]

        start = (torch.zeros((), dtype=torch.int64), *self.zeros(embeddings[0]))
        _, *state = while_loop(more, one_more, start)
        return tuple(state)
