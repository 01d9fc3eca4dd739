"""Adaptive attention: knowing when to look (Lu et al. 2017, "Knowing When to Look").

    v_i = relu(W_v a_i + b_v),  v_g = relu(W_g mean_i a_i + b_g)      regions and the whole image
    x_t = [w_t; v_g],  h_t, m_t = LSTM(x_t, h_{t-1}, m_{t-1})         m is the cell
    s_t = sigmoid(W_x x_t + W_h h_{t-1}) * tanh(m_t)                  the visual sentinel
    c_t = additive attention of h_t over v_1..v_R and s_t             one softmax over R + 1
    log_probabilities = log_softmax(W_p (c_t + h_t) + b_p)

Nothing of step t's attention enters step t + 1, so the LSTM runs over all steps in one call. That
call returns h and the last cells only. Every cell follows exactly from h_t = o_t tanh(m_t): the
output gate o_t = sigmoid(..) is computed once more from x_t and h_{t-1}, in one product with the
sentinel's gate, and tanh(m_t) = h_t / o_t. The division is harmless: what it multiplies a gradient
with, 1 / o_t, the LSTM's backward multiplies it with o_t again, and the parts that come through o_t
cancel there.

Letters: I images, B sequences, R regions, F image feature, S image side, N packed tokens, T longest
length, E embedding, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.attending_captioner import AttendingCaptioner
from captioner.models.attention import AttentionSettings, ImageMemory
from captioner.models.lstm import LSTM
from captioner.models.rnn import dropped_weights_hh
from captioner.models.token_groups import TokenGroups, group_by_image, group_packed
from captioner.models.word_layers import Drop, WordLayers
from captioner.ops.lstm_cell import lstm_cell
from captioner.ops.packing import packed_places
from captioner.profiling import backward_ends, span


@dataclass(frozen=True)
class _Memory:
    """What generation keeps, one leaf of its state.

    `regions` of images, and `given` [I, 5H], what v_g contributes to the gates of the LSTM and of
    the sentinel; weights of what a word contributes, [5H, E], and of what h_{t-1} does, [5H, H].
    """

    regions: ImageMemory
    given: Tensor
    of_word: Tensor
    of_hidden: Tensor


class AdaptiveAttention(AttendingCaptioner):
    """Lu et al.'s captioner with one LSTM layer; arguments as `AttendingCaptioner`.

    The regions' projection has dropout, and the rates of `words` apply to x_t and to c_t + h_t.
    """

    def __init__(self, *, words: WordLayers, attention: AttentionSettings, **image: Any) -> None:
        super().__init__(words=words, attention=attention, **image)
        embedding, hidden = self.embedding_dim, self.hidden_size
        self.image_projection = nn.Linear(self.feature_dim, embedding)
        self.lstm = LSTM(2 * embedding, hidden, backend=words.backend)
        self.sentinel_input = nn.Linear(2 * embedding, hidden, bias=False)
        self.sentinel_hidden = nn.Linear(hidden, hidden, bias=False)
        self.attention = self.make_attention(attention, sentinel_dim=hidden)

    def read_images(self, images: Tensor) -> tuple[Tensor, ImageMemory]:
        """The whole images v_g [I, E], and their regions' keys and values."""
        with span("image"):
            features = self.features(images)
            whole = self.image_projection(features.mean(1)).relu()
            return whole, self.attention.memory(self.project_regions(features))

    def hidden(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        *,
        capacity: bool = False,
    ) -> Tensor:
        """What `output_layer` reads after each token, [N, H]; `capacity` as in
        `LanguageModel.hidden`."""
        drop = self.words.drop(batch_sizes, len(image_rows), len(token_ids))
        hidden, sentinels, memory, groups = self._asked(
            images, image_rows, token_ids, batch_sizes, drop=drop, capacity=capacity
        )
        backward_ends("attention, backward", hidden)
        with span("attention"):
            context = self.attention(hidden, memory, groups, sentinels)
            return drop(context + hidden, self.words.dropout.output)

    def attention_maps(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
    ) -> Tensor:
        """Where the model looks for the word after each token, [N, R + 1]; last the sentinel."""
        drop = self.words.drop(batch_sizes, len(image_rows), len(token_ids))
        hidden, sentinels, memory, groups = self._asked(
            images, image_rows, token_ids, batch_sizes, drop=drop
        )
        return self.attention.weights(hidden, memory, groups, sentinels)

    def _asked(
        self,
        images: Tensor,
        image_rows: Tensor,
        token_ids: Tensor,
        batch_sizes: Tensor,
        *,
        drop: Drop,
        capacity: bool = False,
    ) -> tuple[Tensor, Tensor, ImageMemory, TokenGroups]:
        """h_t and s_t of all tokens, [N, H], and what they attend to."""
        tokens, device = len(token_ids), token_ids.device
        whole, memory = self.read_images(images)
        step, sequence, _ = packed_places(batch_sizes, tokens)
        starts = batch_sizes.cumsum(0) - batch_sizes
        before = torch.where(
            step > 0, starts.index_select(0, (step - 1).clamp(min=0)) + sequence + 1, 0
        )
        with span("embedding"):
            own = whole.index_select(0, image_rows.index_select(0, sequence.to(device)))
            inputs = torch.cat([self.words.embed(token_ids), own], 1)
            inputs = drop(inputs, self.words.dropout.input)
        backward_ends("LSTM, backward", inputs)
        with span("LSTM"):
            zeros = inputs.new_zeros(1, len(image_rows), self.hidden_size)
            dropped = dropped_weights_hh(self.lstm, self.words.dropout.recurrent)
            weights_hh = dropped or [self.lstm.all_weights[0][1]]
            hidden, _ = self.lstm.forward_packed(
                inputs, batch_sizes, (zeros, zeros), weights_hh=weights_hh, capacity=capacity
            )
            padded = torch.cat([hidden.new_zeros(1, self.hidden_size), hidden])
            earlier = padded.index_select(0, before.to(device))
            sentinels = self._sentinels(inputs, earlier, hidden, weights_hh[0])
        groups = group_packed(
            batch_sizes, image_rows, tokens=tokens, images=memory.images, capacity=capacity
        )
        return hidden, sentinels, memory, groups

    def _sentinels(
        self, inputs: Tensor, before: Tensor, hidden: Tensor, weight_hh: Tensor
    ) -> Tensor:
        """s_t [N, H] of x_t [N, 2 E], h_{t-1} [N, H], h_t [N, H], and the recurrent weights [4H, H]
        by which the LSTM computed it."""
        size = self.hidden_size
        weight_ih, _, bias_ih, bias_hh = self.lstm.all_weights[0]
        of_input = torch.cat([weight_ih[-size:], self.sentinel_input.weight])
        of_hidden = torch.cat([weight_hh[-size:], self.sentinel_hidden.weight])
        bias = torch.cat([bias_ih[-size:] + bias_hh[-size:], bias_ih.new_zeros(size)])
        gates = F.linear(inputs, of_input, bias)
        gates = torch.addmm(gates, before, of_hidden.t())
        output_gate, gate = gates.sigmoid().chunk(2, dim=1)
        smallest = torch.finfo(output_gate.dtype).tiny  # of a gate that is open at all
        return gate * (hidden / output_gate.clamp(min=smallest)).clamp(-1, 1)

    def start(self, images: Tensor) -> tuple[Any, ...]:
        """The state before the first word: h and c, zero, each image's number [1, I], and what is
        kept of the images, which beams share."""
        whole, memory = self.read_images(images.to(self.feature_mean.device))
        zeros = whole.new_zeros(1, memory.images, self.hidden_size)
        numbers = torch.arange(memory.images, device=whole.device).unsqueeze(0)
        weight_ih, weight_hh, bias = self.lstm.first_layer()
        of_input = torch.cat([weight_ih, self.sentinel_input.weight])
        of_word, of_image = of_input.split(self.embedding_dim, dim=1)
        of_hidden = torch.cat([weight_hh, self.sentinel_hidden.weight])
        given = F.linear(whole, of_image, F.pad(bias, (0, self.hidden_size)))
        return zeros, zeros.clone(), numbers, _Memory(memory, given, of_word, of_hidden)

    def step(self, token_ids: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """One step of generation: tokens [B] -> log-probabilities [B, V], new state."""
        before, cell, numbers, memory = state
        gates = memory.given.index_select(0, numbers[0])
        gates = torch.addmm(gates, self.words.embedding(token_ids), memory.of_word.t())
        gates = torch.addmm(gates, before[0], memory.of_hidden.t())
        gates, gate = gates.split([4 * self.hidden_size, self.hidden_size], dim=1)
        hidden, cell = lstm_cell(gates, cell[0])
        groups = group_by_image(numbers[0], images=memory.regions.images)
        context = self.attention(hidden, memory.regions, groups, gate.sigmoid() * cell.tanh())
        log_probs = self.words.log_probs(context + hidden)
        return log_probs, (hidden.unsqueeze(0), cell.unsqueeze(0), numbers, memory)
