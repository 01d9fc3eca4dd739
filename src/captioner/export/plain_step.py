"""A language model's steps in PyTorch's own operators, without packed sequences.

Shapes: N sequences, R steps of a prefix, E embedding, H hidden, V vocabulary, L layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from captioner.models.language_model import LanguageModel, State

CELLS: dict[str, Any] = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
}


class PlainStep(nn.Module):
    """What `LanguageModel.read` and `LanguageModel.step` do, on the same weights."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.embedding, self.output = model.embedding, model.output
        self.kind, self.hidden_size = model.lstm.mode, model.lstm.hidden_size
        # Of the layers, which cannot be traced: weight_ih, weight_hh and the biases of each.
        self.layers = nn.ModuleList(nn.ParameterList(one) for one in model.lstm.all_weights)

    def forward(self, token_ids: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, State]:
        """Tokens [N] -> log-probabilities [N, V] of the next, new state, each tensor [L, N, H]."""
        hidden, state = self._recurrent(self.embedding(token_ids), state)
        return F.log_softmax(self.output(hidden).float(), dim=-1), state

    def read(self, embeddings: Tensor) -> State:
        """The state after embeddings [R, N, E]; a loop, because a grid of regions is long."""
        zeros = embeddings.new_zeros(len(self.layers), embeddings.shape[1], self.hidden_size)
        start = (zeros, zeros.clone()) if self.kind == "LSTM" else (zeros,)

        def one_more(position: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            embedding = embeddings.index_select(0, position.unsqueeze(0)).squeeze(0)
            return position + 1, *self._recurrent(embedding, state)[1]

        def more(position: Tensor, *_: Tensor) -> Tensor:
            return position < embeddings.shape[0]

        _, *state = while_loop(more, one_more, (torch.zeros((), dtype=torch.int64), *start))
        return tuple(state)

    def _recurrent(self, rows: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, State]:
        """All recurrent layers over rows [N, E]: output [N, H], new state."""
        after: list[tuple[Tensor, ...]] = []
        weights: Any
        for k, weights in enumerate(self.layers):
            before = tuple(one[k] for one in state)
            new = CELLS[self.kind](rows, before if len(before) > 1 else before[0], *weights)
            after.append(new if isinstance(new, tuple) else (new,))
            rows = after[-1][0]
        return rows, tuple(torch.stack(parts) for parts in zip(*after, strict=True))
