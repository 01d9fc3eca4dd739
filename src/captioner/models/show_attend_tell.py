"""Show, Attend and Tell with soft attention (Xu et al. 2015).

    v_i = relu(W_v a_i + b_v)                                    regions
    h_0, c_0 = tanh(W_h mean_i v_i + b_h), tanh(W_c mean_i v_i + b_c)
    z_t = sigmoid(W_b h_{t-1} + b_b) * attention of h_{t-1}      additive, gated
    h_t, c_t = LSTM([w_t; z_t], h_{t-1}, c_{t-1})
    y_t = tanh(W_y [w_t; h_t; z_t] + b_y)                        the deep output
    log_probabilities = log_softmax(W_p y_t + b_p)

In training each caption adds lambda sum_i (1 - sum_t alpha_ti)^2 to the loss, the doubly stochastic
regulariser: every region should be looked at sometime. Two things are not the paper's, but those of
later implementations: regions are projected, and the gate is a number for each unit.

Letters: I images, B sequences, b sequences at a step, R regions, N packed tokens, T longest length,
E embedding, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.attention import AttentionSettings, ImageMemory
from captioner.models.feedback import Advance, FeedbackCaptioner, State, Step, cell
from captioner.models.lstm import LSTM
from captioner.models.token_groups import TokenGroups
from captioner.models.word_layers import WordLayers
from captioner.ops.packing import packed_places
from captioner.ops.repeated_linear import RepeatedLinear


class ShowAttendTell(FeedbackCaptioner):
    """Xu et al.'s captioner; `doubly_stochastic` is their lambda, other arguments as
    `AttendingCaptioner`."""

    def __init__(
        self,
        *,
        words: WordLayers,
        attention: AttentionSettings,
        doubly_stochastic: float = 1.0,
        **image: Any,
    ) -> None:
        super().__init__(words=words, attention=attention, **image)
        embedding, hidden = self.embedding_dim, self.hidden_size
        self.first_hidden = nn.Linear(hidden, hidden)
        self.first_cell = nn.Linear(hidden, hidden)
        self.attention = self.make_attention(attention)
        self.gate = nn.Linear(hidden, hidden)
        self.lstm = LSTM(embedding + hidden, hidden, backend=words.backend)
        self.deep_output = nn.Linear(embedding + 2 * hidden, hidden)
        self.doubly_stochastic = doubly_stochastic

    def loss(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        targets: Tensor,  # [N] the token after each
        *,
        label_smoothing: float = 0.0,
        capacity: bool = False,
        weights: Tensor | None = None,  # [N] of the targets
    ) -> Tensor:
        """Summed cross-entropy of the targets in nats, in training with the regulariser unless it
        is weighted; ValueError with `capacity`, as `hidden`."""
        batch = (images, image_rows, token_ids, batch_sizes)
        plain = capacity or weights is not None or not self.training
        if plain or self.doubly_stochastic == 0:
            settings: dict[str, Any] = {"label_smoothing": label_smoothing, "capacity": capacity}
            return super().loss(*batch, targets, weights=weights, **settings)
        hidden, attention = self.unrolled(*batch)
        loss = self.output_loss(hidden, targets, label_smoothing)
        return loss + self.doubly_stochastic * looked_at_once(attention, batch_sizes)

    def begin(self, mean: Tensor) -> State:
        """h and c before the first word, [1, I, H], of the mean of the regions [I, H]."""
        first = (self.first_hidden(mean), self.first_cell(mean))
        return tuple(x.tanh().unsqueeze(0) for x in first)

    def given(
        self,
        words: Tensor,  # [N, E]
        mean: Tensor,  # [I, H] of the regions
        images: Tensor,  # [N] which image each token describes
    ) -> Tensor:
        """What words contribute to the gates, [N, 4H]."""
        weight_ih, _, bias = self.lstm.first_layer()
        return F.linear(words, weight_ih[:, : self.embedding_dim], bias)

    def loop(self) -> Advance:
        """One step of all sequences that have one."""
        query, gate = RepeatedLinear.of(self.attention.query), RepeatedLinear.of(self.gate)
        weight_ih, weight_hh, _ = self.lstm.first_layer()
        of_context = RepeatedLinear(weight_ih[:, self.embedding_dim :])
        of_hidden = RepeatedLinear(weight_hh)

        def advance(
            given: Tensor, state: State, memory: ImageMemory, groups: TokenGroups
        ) -> tuple[Step, State]:
            before = state[0][0]
            context, weights = self.attention.with_weights(query(before), memory, groups)
            context = gate(before).sigmoid() * context
            state = cell(of_hidden(before, of_context(context, given)), state)
            return Step(state[0][0], context, weights), state

        return advance

    def finish(self, words: Tensor, steps: Step) -> Tensor:
        """What the output layer reads, [N, H], after words [N, E] and their steps."""
        return self.deep_output(torch.cat([words, steps.hidden, steps.context], 1)).tanh()


def looked_at_once(weights: Tensor, batch_sizes: Tensor) -> Tensor:
    """sum_i (1 - sum_t alpha_ti)^2, summed over the captions, of packed weights [N, R]."""
    _, sequence, _ = packed_places(batch_sizes, len(weights))
    sums = weights.new_zeros(int(batch_sizes[0]), weights.shape[1])
    sums = sums.index_add(0, sequence.to(weights.device), weights)
    return (1 - sums).square().sum()
