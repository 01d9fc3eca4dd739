"""Attention of packed tokens over the regions of the image that each of them describes.

Every token asks with a query; an image's keys and values are computed once for all its captions.
Tokens are grouped by image (`token_groups`), so that all of them attend in one batched product.
attention_reference.py has the readable twin, a loop over sequences.

Letters: I images, R regions, F width of a region, N packed tokens, Q slots for an image's tokens, D
width of a query, S width of a sentinel, A attention, h heads, d = A / h.

Formulas, for a query q, regions v_1..v_R and scores z:
    alpha = softmax(z),  context = sum_i alpha_i value_i
    multi-head (Vaswani et al. 2017), in each head:
        z_i = (W_q q)'(W_k v_i) / sqrt(d),  value_i = W_v v_i
    additive (Bahdanau et al. 2015, Xu et al. 2015):
        z_i = w' tanh(W_q q + W_k v_i),  value_i = v_i
With a sentinel s (Lu et al. 2017) the softmax runs over R + 1 scores, s being one more region that
a token has of its own: the weight on it says how much the token does without the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.token_groups import TokenGroups
from captioner.ops import additive_scores, dropout
from captioner.ops.models import each_item, linear


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """Width A of keys, their heads, dropout of projected regions and of the weights."""

    dim: int
    heads: int = 1
    region_dropout: float = 0.0
    weight_dropout: float = 0.0


@dataclass(frozen=True)
class ImageMemory:
    """Keys [I, h, R, d] and values [I, h, R, d] of images.

    No pytree: in a state of generation it is one leaf that all beams share.
    """

    keys: Tensor
    values: Tensor

    @property
    def images(self) -> int:
        """I."""
        return len(self.keys)


class RegionAttention(nn.Module, ABC):
    """What both kinds of attention have; `rate` is the dropout of the weights."""

    def __init__(self, *, query_dim: int, region_dim: int, dim: int, rate: float = 0.0) -> None:
        super().__init__()
        self.weight_dropout = rate
        self.query = nn.Linear(query_dim, dim)
        self.key = nn.Linear(region_dim, dim)

    @abstractmethod
    def memory(self, regions: Tensor) -> ImageMemory:
        """Keys and values of regions [I, R, F]."""

    @abstractmethod
    def scores(self, queries: Tensor, keys: Tensor, groups: TokenGroups) -> Tensor:
        """Scores [I, h, Q, R] of projected queries [N, A] and keys [I, h, R, d]."""

    @abstractmethod
    def sentinel(self, queries: Tensor, sentinels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, h] and values [N, A'] of sentinels [N, S] for projected queries [N, A]."""

    def forward(
        self,
        queries: Tensor,  # [N, D]
        memory: ImageMemory,
        groups: TokenGroups,
        sentinels: Tensor | None = None,  # [N, S]
    ) -> Tensor:
        """The context of each token, [N, A'] with A' the width of a value."""
        queries = linear(queries, self.query)
        if sentinels is None:
            return self._context(queries, memory, groups)
        own_scores, own_values = self.sentinel(queries, sentinels)
        weights = self._weights(queries, memory, groups, own_scores)
        weights = dropout(weights, self.weight_dropout, self.training)
        context = weights[..., :-1] @ memory.values
        own_weights = groups.gather(weights[..., -1].transpose(1, 2))  # [N, h]
        heads = own_weights.shape[1]
        own = own_weights.unsqueeze(2) * own_values.view(len(own_values), heads, -1)
        return groups.gather(_joined(context)) + own.flatten(1)

    def weights(
        self,
        queries: Tensor,  # [N, D]
        memory: ImageMemory,
        groups: TokenGroups,
        sentinels: Tensor | None = None,  # [N, S]
    ) -> Tensor:
        """The attention map of each token, [N, R], or [N, R + 1] with the sentinel last: the mean
        over the heads of what `forward` multiplies the values with, without dropout."""
        queries = linear(queries, self.query)
        own = None if sentinels is None else self.sentinel(queries, sentinels)[0]
        weights = self._weights(queries, memory, groups, own)
        return groups.gather(weights.mean(dim=1))

    def with_weights(
        self, queries: Tensor, memory: ImageMemory, groups: TokenGroups
    ) -> tuple[Tensor, Tensor]:
        """What `forward` and `weights` give of projected queries [N, A], computed once."""
        weights = self._weights(queries, memory, groups)
        context = dropout(weights, self.weight_dropout, self.training) @ memory.values
        return groups.gather(_joined(context)), groups.gather(weights.mean(dim=1))

    def _context(self, queries: Tensor, memory: ImageMemory, groups: TokenGroups) -> Tensor:
        weights = self._weights(queries, memory, groups)
        context = dropout(weights, self.weight_dropout, self.training) @ memory.values
        return groups.gather(_joined(context))

    def _weights(
        self,
        queries: Tensor,  # [N, A] projected
        memory: ImageMemory,
        groups: TokenGroups,
        own_scores: Tensor | None = None,  # [N, h] of the sentinels
    ) -> Tensor:
        """Softmax of the scores, [I, h, Q, R] or [I, h, Q, R + 1]."""
        scores = self.scores(queries, memory.keys, groups)
        if own_scores is not None:
            own = groups.scatter(own_scores).transpose(1, 2).unsqueeze(3)
            scores = torch.cat([scores, own], dim=3)
        return scores.softmax(dim=-1)


class MultiHeadAttention(RegionAttention):
    """Scaled dot products in `heads` subspaces; the heads' contexts stand side by side, A in all.

    ValueError unless `heads` divides `dim`. `sentinel_dim` None has no sentinel.
    """

    def __init__(
        self,
        *,
        query_dim: int,
        region_dim: int,
        dim: int,
        heads: int,
        rate: float = 0.0,
        sentinel_dim: int | None = None,
    ) -> None:
        super().__init__(query_dim=query_dim, region_dim=region_dim, dim=dim, rate=rate)
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        self.heads = heads
        self.value = nn.Linear(region_dim, dim)
        if sentinel_dim is not None:
            self.sentinel_key = nn.Linear(sentinel_dim, dim)
            self.sentinel_value = nn.Linear(sentinel_dim, dim)

    def memory(self, regions: Tensor) -> ImageMemory:
        """Keys and values of regions [I, R, F]."""
        keys, values = linear(regions, self.key), linear(regions, self.value)
        return ImageMemory(self._by_head(keys), self._by_head(values))

    def scores(self, queries: Tensor, keys: Tensor, groups: TokenGroups) -> Tensor:
        """Scores [I, h, Q, R] of projected queries [N, A] and keys [I, h, R, d]."""
        return self._by_head(groups.scatter(queries)) @ keys.transpose(2, 3) * keys.shape[3] ** -0.5

    def sentinel(self, queries: Tensor, sentinels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, h] and values [N, A] of sentinels [N, S] for projected queries [N, A]."""
        products = (queries * self.sentinel_key(sentinels)).view(len(queries), self.heads, -1)
        return products.sum(2) * products.shape[2] ** -0.5, self.sentinel_value(sentinels)

    def _context(self, queries: Tensor, memory: ImageMemory, groups: TokenGroups) -> Tensor:
        # On a CPU torch's dropout would draw from the generator that all threads share, and slowly.
        rate = self.weight_dropout if self.training else 0.0
        if rate > 0 and queries.device.type == "cpu":
            return super()._context(queries, memory, groups)
        attend = partial(F.scaled_dot_product_attention, dropout_p=rate)
        asked = self._by_head(groups.scatter(queries))
        return groups.gather(_joined(each_item(attend, asked, memory.keys, memory.values)))

    def _by_head(self, rows: Tensor) -> Tensor:
        """Rows [I, R, A] as [I, h, R, d], contiguous: they are multiplied more than once."""
        return rows.unflatten(2, (self.heads, -1)).transpose(1, 2).contiguous()


class AdditiveAttention(RegionAttention):
    """One hidden layer of `dim` units scores a query and a region; the values are the regions.

    With `sentinel_dim` = S the sentinels, which must be as wide as a region (S = F), have a
    projection of their own. `backend` computes the scores, see `ops.additive_scores`.
    """

    def __init__(
        self,
        *,
        query_dim: int,
        region_dim: int,
        dim: int,
        rate: float = 0.0,
        sentinel_dim: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(query_dim=query_dim, region_dim=region_dim, dim=dim, rate=rate)
        self.backend = backend
        self.score = nn.Linear(dim, 1, bias=False)  # a bias would not change the softmax
        if sentinel_dim is not None:
            self.sentinel_key = nn.Linear(sentinel_dim, dim)

    def memory(self, regions: Tensor) -> ImageMemory:
        """Keys of regions [I, R, F], and these as values."""
        return ImageMemory(self.key(regions).unsqueeze(1), regions.unsqueeze(1))

    def scores(self, queries: Tensor, keys: Tensor, groups: TokenGroups) -> Tensor:
        """Scores [I, 1, Q, R] of projected queries [N, A] and keys [I, 1, R, A]."""
        images, weight = groups.token_images, self.score.weight[0]
        found = additive_scores(queries, keys.squeeze(1), images, weight, backend=self.backend)
        return groups.scatter(found).unsqueeze(1)

    def sentinel(self, queries: Tensor, sentinels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, 1] of sentinels [N, S] for projected queries [N, A], and these as values."""
        return self.score((queries + self.sentinel_key(sentinels)).tanh()), sentinels


def _joined(context: Tensor) -> Tensor:
    """Contexts [I, h, Q, d] of all heads side by side, [I, Q, h d]."""
    return context.transpose(1, 2).flatten(2)
