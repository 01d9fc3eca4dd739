"""Attention of an image's beams over its regions, in operators that ONNX has.

Shapes: B images, K beams, N = B * K rows, image by image, R regions, D width of a query, S width of
a sentinel, A attention, h heads, d = A / h, A' width of a value.
"""

import torch
from torch import Tensor, nn

from captioner.models.attention import AdditiveAttention, RegionAttention


class PlainAttention(nn.Module):
    """What a `RegionAttention` gives without dropout, on its weights, for K queries an image.

    All beams of an image are one batched product with its keys, which are not repeated.
    """

    def __init__(self, attention: RegionAttention, beam_size: int) -> None:
        super().__init__()
        self.attention, self.beam_size = attention, beam_size

    def forward(
        self,
        queries: Tensor,  # [N, D]
        keys: Tensor,  # [B, h, R, d]
        values: Tensor,  # [B, h, R, d] or, with additive attention, [B, 1, R, A']
        sentinels: Tensor | None = None,  # [N, S]
    ) -> Tensor:
        """The context of each row, [N, A']."""
        queries = self.attention.query(queries)
        scores = self._scores(self._by_head(queries, keys.shape[1]), keys)
        if sentinels is None:
            return self._joined(scores.softmax(-1) @ values)
        own_scores, own_values = self.attention.sentinel(queries, sentinels)
        own_scores = self._by_head(own_scores, keys.shape[1])
        own_values = self._by_head(own_values, keys.shape[1])
        weights = torch.cat([scores, own_scores], dim=3).softmax(-1)
        return self._joined(weights[..., :-1] @ values + weights[..., -1:] * own_values)

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores [B, h, K, R] of queries [B, h, K, d]."""
        if not isinstance(self.attention, AdditiveAttention):
            return queries @ keys.transpose(2, 3) * keys.shape[3] ** -0.5
        hidden = (queries.unsqueeze(3) + keys.unsqueeze(2)).tanh()  # [B, 1, K, R, A]
        return hidden @ self.attention.score.weight[0]

    def _by_head(self, rows: Tensor, heads: int) -> Tensor:
        """Rows [N, h d] as [B, h, K, d]."""
        return rows.view(-1, self.beam_size, heads, rows.shape[1] // heads).transpose(1, 2)

    def _joined(self, context: Tensor) -> Tensor:
        """Contexts [B, h, K, d] of all heads side by side, [N, h d]."""
        return context.transpose(1, 2).flatten(2).flatten(0, 1)
