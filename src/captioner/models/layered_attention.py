"""Layered attention: the LSTM runs over all steps, then every h_t asks the image at once.

What a step attends to goes into the output, or into a second LSTM, and never back into the first
(as in the spatial attention of Lu et al. 2017): each layer is one call for all time steps.

    p = W_p mean_i a_i + b_p            the pooled image, read as the first word
    v_i = relu(W_v a_i + b_v)           regions, with dropout
    h_1..h_T = LSTM([p; w_1..w_T])      after each word
    c_t = attention(h_t; v_1..v_R)      multi-head
    y_t = join(h_t, c_t)                log-probabilities = log_softmax(W_o y_t + b_o)

Letters: I images, B sequences, R regions, F image feature, S image side, N packed tokens, T longest
length, E embedding, H hidden, A attention, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captioner.models.attention import AttentionSettings, ImageMemory, MultiHeadAttention
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.language_model import LanguageModel, State
from captioner.models.rnn import dropped_weights_hh, make_rnn
from captioner.models.token_groups import TokenGroups, group_by_image, group_packed
from captioner.models.word_layers import Drop
from captioner.ops import dropout
from captioner.ops.models import linear
from captioner.profiling import backward_ends, span

if TYPE_CHECKING:  # a machine that trains on features alone needs no torchvision
    from captioner.models.encoder import Encoder

JOINS = ("concat", "gate", "lstm")


class LayeredAttention(BaseCaptioner):
    """Layered attention; features as in `BaseCaptioner`.

    `join` makes y_t of h_t and c_t: "concat" is tanh(W [h; c] + b); "gate" is g h + (1 - g) tanh(W
    c + b) with g = sigmoid(W_g [h; c] + b_g); "lstm" is h plus the output of a second LSTM that
    reads [h; c]. ValueError for another, or unless the heads divide A.
    """

    def __init__(
        self,
        *,
        language_model: LanguageModel,
        attention: AttentionSettings,
        feature_dim: int,
        join: str = "concat",
        feature_norm: str = "standardise",
        feature_dropout: float = 0.0,
        encoder: Encoder | None = None,
        regions: int | None = None,
    ) -> None:
        super().__init__(
            feature_dim=feature_dim,
            feature_norm=feature_norm,
            feature_dropout=feature_dropout,
            encoder=encoder,
            regions=regions,
        )
        if join not in JOINS:
            raise ValueError(f"join must be one of {', '.join(JOINS)}, got {join!r}")
        rnn = language_model.lstm
        hidden, dim = rnn.hidden_size, attention.dim
        self.image_projection = nn.Linear(feature_dim, language_model.embedding.embedding_dim)
        self.region_projection = nn.Linear(feature_dim, dim)
        self.region_dropout = attention.region_dropout
        self.attention = MultiHeadAttention(
            query_dim=hidden,
            region_dim=dim,
            dim=dim,
            heads=attention.heads,
            rate=attention.weight_dropout,
        )
        self.join = join
        self.second: Any = None
        if join == "lstm":
            self.second = make_rnn(
                language_model.kind,
                *(hidden + dim, hidden, 1),
                dropout=0.0,
                backend=language_model.backend,
                rounds=language_model.rounds,
            )
        else:
            self.context_projection = nn.Linear(dim + (hidden if join == "concat" else 0), hidden)
        if join == "gate":
            self.gate = nn.Linear(hidden + dim, hidden)
        self.language_model = language_model

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer, from hidden states [N, H] to the vocabulary."""
        return self.language_model.output

    @property
    def backend(self) -> str:
        """What computes the operators, see `ops.backend`."""
        return self.language_model.backend

    def read_images(self, images: Tensor) -> tuple[Tensor, ImageMemory]:
        """The pooled images as a prefix [1, I, E], and their regions' keys and values."""
        with span("image"):
            features = self.features(images)
            prefix = linear(features.mean(1), self.image_projection).unsqueeze(0)
            regions = linear(features, self.region_projection).relu()
            regions = dropout(regions, self.region_dropout, self.training)
            return prefix, self.attention.memory(regions)

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
        hidden, memory, groups, drop = self._first(
            images, image_rows, token_ids, batch_sizes, capacity
        )
        backward_ends("attention, backward", hidden)
        with span("attention"):
            context = self.attention(hidden, memory, groups)
            zeros = hidden.new_zeros(1, len(image_rows), hidden.shape[1])
            state = (zeros, zeros) if capacity else None
            joined, _ = self._joined(
                hidden, context, batch_sizes, state, drop=drop, capacity=capacity
            )
            return drop(joined, self.language_model.dropout.output)

    def attention_maps(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
    ) -> Tensor:
        """Where the model looks for the word after each token, [N, R], the mean over the heads."""
        hidden, memory, groups, _ = self._first(images, image_rows, token_ids, batch_sizes)
        return self.attention.weights(hidden, memory, groups)

    def _first(
        self,
        images: Tensor,
        image_rows: Tensor,
        token_ids: Tensor,
        batch_sizes: Tensor,
        capacity: bool = False,
    ) -> tuple[Tensor, ImageMemory, TokenGroups, Drop]:
        """h of the first LSTM after each token, [N, H], and what it asks."""
        prefix, memory = self.read_images(images)
        model = self.language_model
        before = model.after_prefix(prefix, image_rows, capacity=capacity)
        hidden, _, drop = model.recurrent(token_ids, batch_sizes, **before, capacity=capacity)
        groups = group_packed(
            batch_sizes,
            image_rows,
            tokens=len(token_ids),
            images=memory.images,
            capacity=capacity,
        )
        return hidden, memory, groups, drop

    def _joined(
        self,
        hidden: Tensor,  # [N, H]
        context: Tensor,  # [N, A]
        batch_sizes: Tensor,  # [T]
        state: State | None,  # of the second LSTM
        *,
        drop: Drop,
        capacity: bool = False,
    ) -> tuple[Tensor, State]:
        """y [N, H], and the second LSTM's state at the end where there is one."""
        if self.join == "gate":
            gate = linear(torch.cat([hidden, context], 1), self.gate).sigmoid()
            return gate * hidden + (1 - gate) * linear(context, self.context_projection).tanh(), ()
        both = torch.cat([hidden, context], 1)
        if self.second is None:
            return linear(both, self.context_projection).tanh(), ()
        rates = self.language_model.dropout
        weights_hh = dropped_weights_hh(self.second, rates.recurrent)
        output, state = self.second.forward_packed(
            drop(both, rates.input), batch_sizes, state, weights_hh=weights_hh, capacity=capacity
        )
        return hidden + output, state

    def start(self, images: Tensor) -> tuple[Any, ...]:
        """The state after reading the images: of the first LSTM, of the second one where there is
        one, each image's number [1, I], and the images' keys and values, which beams share."""
        prefix, memory = self.read_images(images.to(self.feature_mean.device))
        first = self.language_model.read(prefix)[1]
        second = () if self.second is None else tuple(torch.zeros_like(x[:1]) for x in first)
        numbers = torch.arange(memory.images, device=prefix.device).unsqueeze(0)
        return (*first, *second, numbers, memory)

    def tabulated(self) -> AbstractContextManager[None]:
        """A context for generation: see `LanguageModel.tabulated`."""
        return self.language_model.tabulated()

    def step(self, token_ids: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """One step of generation: tokens [B] -> log-probabilities [B, V], new state."""
        *recurrent, numbers, memory = state
        count = len(recurrent) if self.second is None else len(recurrent) // 2
        hidden, first = self.language_model.advance(token_ids, tuple(recurrent[:count]))
        groups = group_by_image(numbers[0], images=memory.images)
        context = self.attention(hidden, memory, groups)
        joined, second = self._joined(
            hidden,
            context,
            torch.tensor([len(token_ids)]),
            tuple(recurrent[count:]),
            drop=lambda rows, rate: dropout(rows, rate, self.training),
        )
        return self.language_model.log_probs(joined), (*first, *second, numbers, memory)
