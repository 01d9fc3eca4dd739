"""What the captioners of the literature share: projected regions, additive attention, word layers.

Letters: I images, R regions, F image feature, P projected region, D query, N packed tokens, E
embedding, H hidden.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor, nn

from captioner.models.attention import AdditiveAttention, AttentionSettings
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.word_layers import WordLayers
from captioner.ops import dropout

if TYPE_CHECKING:  # a machine that trains on features alone needs no torchvision
    from captioner.models.encoder import Encoder


class AttendingCaptioner(BaseCaptioner):
    """Regions v_i = relu(W_v a_i + b_v), with dropout, as wide as `words`' hidden states; features
    as in `BaseCaptioner`. A subclass says what its `attention` is asked."""

    attention: AdditiveAttention

    def __init__(
        self,
        *,
        words: WordLayers,
        attention: AttentionSettings,
        feature_dim: int,
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
        self.words = words
        self.embedding_dim = words.embedding.embedding_dim
        self.hidden_size = words.output.in_features
        self.region_projection = nn.Linear(feature_dim, self.hidden_size)
        self.region_dropout = attention.region_dropout

    def make_attention(
        self, settings: AttentionSettings, *, sentinel_dim: int | None = None
    ) -> AdditiveAttention:
        """Attention that is asked by hidden states [N, H]."""
        return AdditiveAttention(
            query_dim=self.hidden_size,
            region_dim=self.hidden_size,
            dim=settings.dim,
            rate=settings.weight_dropout,
            sentinel_dim=sentinel_dim,
            backend=self.backend,
        )

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer, from hidden states [N, H] to the vocabulary."""
        return self.words.output

    @property
    def backend(self) -> str:
        """What computes the operators, see `ops.backend`."""
        return self.words.backend

    def project_regions(self, features: Tensor) -> Tensor:
        """Regions [I, R, H] of features [I, R, F]."""
        regions = self.region_projection(features).relu()
        return dropout(regions, self.region_dropout, self.training)

    def tabulated(self) -> AbstractContextManager[None]:
        """A context for generation; nothing is tabulated, because steps read more than words."""
        return nullcontext()
