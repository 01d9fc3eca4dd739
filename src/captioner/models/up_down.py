"""Bottom-up and top-down attention (Anderson et al. 2018): an LSTM that attends, one that speaks.

    v_i = relu(W_v a_i + b_v)                                     regions
    h1_t = LSTM1([h2_{t-1}; mean_i v_i; w_t], h1_{t-1})
    z_t = attention of h1_t                                       additive
    h2_t = LSTM2([z_t; h1_t], h2_{t-1})
    log_probabilities = log_softmax(W_p h2_t + b_p)

The paper's regions are those of an object detector; here they are a grid's, projected.

Letters: I images, N packed tokens, E embedding, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.models.attention import AttentionSettings, ImageMemory
from captioner.models.feedback import Advance, FeedbackCaptioner, State, Step, cell
from captioner.models.lstm import LSTM
from captioner.models.token_groups import TokenGroups
from captioner.models.word_layers import WordLayers
from captioner.ops.repeated_linear import RepeatedLinear


class UpDown(FeedbackCaptioner):
    """Anderson et al.'s captioner; arguments as `AttendingCaptioner`."""

    def __init__(self, *, words: WordLayers, attention: AttentionSettings, **image: Any) -> None:
        super().__init__(words=words, attention=attention, **image)
        embedding, hidden, backend = self.embedding_dim, self.hidden_size, words.backend
        self.attention_lstm = LSTM(embedding + 2 * hidden, hidden, backend=backend)
        self.attention = self.make_attention(attention)
        self.language_lstm = LSTM(2 * hidden, hidden, backend=backend)

    def begin(self, mean: Tensor) -> State:
        """h1, c1, h2 and c2 before the first word, zeros [1, I, H]."""
        return tuple(torch.zeros_like(mean).unsqueeze(0) for _ in range(4))

    def given(
        self,
        words: Tensor,  # [N, E]
        mean: Tensor,  # [I, H] of the regions
        images: Tensor,  # [N] which image each token describes
    ) -> Tensor:
        """What words and images contribute to the gates of the first LSTM, [N, 4H]."""
        weight_ih, _, bias = self.attention_lstm.first_layer()
        of_word, of_mean, _ = self._by_input(weight_ih)
        return F.linear(words, of_word, bias) + F.linear(mean, of_mean).index_select(0, images)

    def _by_input(self, weight_ih: Tensor) -> Sequence[Tensor]:
        """Of the first LSTM's weights [4H, E + 2H], those of the word, of the mean, and of h2."""
        return weight_ih.split([self.embedding_dim, self.hidden_size, self.hidden_size], dim=1)

    def loop(self) -> Advance:
        """One step of all sequences that have one."""
        query = RepeatedLinear.of(self.attention.query)
        weight_ih, weight_hh, _ = self.attention_lstm.first_layer()
        second_to_first = RepeatedLinear(self._by_input(weight_ih)[2])
        first_to_first = RepeatedLinear(weight_hh)
        weight_ih, weight_hh, bias = self.language_lstm.first_layer()
        both_to_second = RepeatedLinear(weight_ih, bias)
        second_to_second = RepeatedLinear(weight_hh)

        def advance(
            given: Tensor, state: State, memory: ImageMemory, groups: TokenGroups
        ) -> tuple[Step, State]:
            before, second = state[:2], state[2:]
            gates = second_to_first(second[0][0], given)
            first = cell(first_to_first(before[0][0], gates), before)
            asked = first[0][0]
            context, weights = self.attention.with_weights(query(asked), memory, groups)
            gates = both_to_second(torch.cat([context, asked], 1))
            second = cell(second_to_second(second[0][0], gates), second)
            return Step(second[0][0], context, weights), (*first, *second)

        return advance

    def finish(self, words: Tensor, steps: Step) -> Tensor:
        """What the output layer reads, [N, H], after words [N, E] and their steps."""
        return steps.hidden
