"""Show and Tell (Vinyals et al. 2015): a language model whose first word is the image.

Letters: I images, B captions, R regions (1 for a pooled feature), F image feature, S image side, N
packed tokens, T longest length, E embedding, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from captioner.models.base_captioner import FEATURE_NORMS, BaseCaptioner
from captioner.models.language_model import LanguageModel, State
from captioner.ops.models import linear
from captioner.profiling import span

if TYPE_CHECKING:  # a machine that trains on features alone needs no torchvision
    from captioner.models.encoder import Encoder

__all__ = ["FEATURE_NORMS", "Captioner"]


class Captioner(BaseCaptioner):
    """Features -> projection -> first word(s) of the language model; features as in
    `BaseCaptioner`."""

    def __init__(
        self,
        *,
        language_model: LanguageModel,
        feature_dim: int,
        feature_norm: str = "standardise",
        feature_dropout: float = 0.0,
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__(
            feature_dim=feature_dim,
            feature_norm=feature_norm,
            feature_dropout=feature_dropout,
            encoder=encoder,
        )
        self.image_projection = nn.Linear(feature_dim, language_model.embedding.embedding_dim)
        self.language_model = language_model

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer, from hidden states [N, H] to the vocabulary."""
        return self.language_model.output

    @property
    def backend(self) -> str:
        """What computes the operators, see `ops.backend`."""
        return self.language_model.backend

    def embed_images(self, images: Tensor) -> Tensor:
        """Features [I, R, F] (or images [I, 3, S, S] with an encoder) -> prefix [R, I, E]."""
        prefix = linear(self.features(images), self.image_projection)
        return prefix.transpose(0, 1)

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
        with span("image"):
            prefix = self.embed_images(images)
        model = self.language_model
        before = model.after_prefix(prefix, image_rows, capacity=capacity)
        return model.hidden(token_ids, batch_sizes, **before, capacity=capacity)[0]

    def start(self, images: Tensor) -> State:
        """The language model's state after reading the images, where generation begins."""
        images = images.to(self.feature_mean.device)
        return self.language_model.read(self.embed_images(images))[1]

    def tabulated(self) -> AbstractContextManager[None]:
        """A context for generation: see `LanguageModel.tabulated`."""
        return self.language_model.tabulated()

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of generation: tokens [B] -> log-probabilities [B, V], new state."""
        return self.language_model.step(token_ids, state)
