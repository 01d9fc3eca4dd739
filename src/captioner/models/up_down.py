"""Bottom-up and top-down attention (Anderson et al. 2018): an LSTM that attends, one that speaks.

    v_i = relu(W_v a_i + b_v)                                     regions
    h1_t = LSTM1([h2_{t-1}; mean_i v_i; w_t], h1_{t-1})
    z_t = attention of h1_t                                       additive
    h2_t = LSTM2([z_t; h1_t], h2_{t-1})
    log_probabilities = log_softmax(W_p h2_t + b_p)

The paper's regions are those of an object detector; here they are a grid's, projected.

Letters: I images, b sequences at a step, N packed tokens, E embedding, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captioner.models.attention import AttentionSettings, ImageMemory
from captioner.models.feedback import FeedbackCaptioner, State, Step, lstm_step
from captioner.models.lstm import LSTM
from captioner.models.token_groups import TokenGroups
from captioner.models.word_layers import WordLayers


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

    def advance(
        self,
        inputs: Tensor,  # [b, E + H] the word, and the mean of its image's regions
        state: State,
        memory: ImageMemory,
        groups: TokenGroups,
    ) -> tuple[Step, State]:
        """One step of all sequences that have one."""
        before, second = state[:2], state[2:]
        inputs = torch.cat([inputs, second[0][0]], 1)
        first = lstm_step(self.attention_lstm, inputs, before)
        asked = first[0][0]
        context, weights = self.attention.with_weights(asked, memory, groups)
        second = lstm_step(self.language_lstm, torch.cat([context, asked], 1), second)
        return Step(second[0][0], context, weights), (*first, *second)

    def finish(self, words: Tensor, steps: Step) -> Tensor:
        """What the output layer reads, [N, H], after words [N, E] and their steps."""
        return steps.hidden
