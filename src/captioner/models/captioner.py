"""Show and Tell (Vinyals et al. 2015): a language model whose first word is the image.

Letters: I images, B captions, R regions (1 for a pooled feature), F image feature, S image side, N
packed tokens, T longest length, E embedding, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.language_model import LanguageModel, State
from captioner.ops import dropout
from captioner.profiling import span

if TYPE_CHECKING:  # a machine that trains on features alone needs no torchvision
    from captioner.models.encoder import Encoder

FEATURE_NORMS = ("standardise", "l2", "none")


class Captioner(nn.Module):
    """Features -> projection -> first word(s) of the language model.

    `feature_norm`: "standardise" by the statistics of `set_feature_statistics`, clamped at +-6;
    "l2" divides by the norm; "none". With an `encoder`, trained with the rest, the model takes
    images.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        *,
        language_model: LanguageModel,
        feature_dim: int,
        feature_norm: str = "standardise",
        feature_dropout: float = 0.0,
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__()
        if feature_norm not in FEATURE_NORMS:
            raise ValueError(
                f"feature_norm must be one of {', '.join(FEATURE_NORMS)}, got {feature_norm!r}"
            )
        self.encoder = encoder
        self.image_projection = nn.Linear(feature_dim, language_model.embedding.embedding_dim)
        self.language_model = language_model
        self.feature_norm, self.feature_dropout = feature_norm, feature_dropout
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Mean and deviation [F] over the training images, used by "standardise"."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp(min=1e-5))

    def embed_images(self, images: Tensor) -> Tensor:
        """Features [I, R, F] (or images [I, 3, S, S] with an encoder) -> prefix [R, I, E]."""
        features = images if self.encoder is None else self.encoder(images)
        if self.feature_norm == "standardise":
            features = ((features - self.feature_mean) / self.feature_std).clamp(-6, 6)
        elif self.feature_norm == "l2":
            features = F.normalize(features, dim=-1)
        features = dropout(features, self.feature_dropout, self.training)
        return self.image_projection(features).transpose(0, 1)

    def forward(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
    ) -> Tensor:
        """Logits [N, V] of the packed captions' next tokens."""
        context = self._context(images, image_rows)
        return self.language_model(token_ids, batch_sizes, **context)[0]

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
    ) -> Tensor:
        """Summed cross-entropy of the targets in nats; `capacity` as in `LanguageModel.hidden`."""
        context = self._context(images, image_rows, capacity)
        settings: dict[str, Any] = {"label_smoothing": label_smoothing, "capacity": capacity}
        return self.language_model.loss(token_ids, batch_sizes, targets, **settings, **context)[0]

    def _context(
        self, images: Tensor, image_rows: Tensor, capacity: bool = False
    ) -> dict[str, Any]:
        """What precedes each caption: its image's embeddings, or the state after them."""
        with span("image"):
            prefix = self.embed_images(images)
        if len(image_rows) < 2 * prefix.shape[1]:
            return {"prefix": prefix.index_select(1, image_rows)}
        # Batches by image: each image is read once, and its captions continue from that state.
        read = self.language_model.read(prefix, capacity=capacity)[1]
        return {"state": tuple(one.index_select(1, image_rows) for one in read)}

    def start(self, images: Tensor) -> State:
        """The language model's state after reading the images, where generation begins."""
        images = images.to(self.image_projection.weight.device)
        return self.language_model.read(self.embed_images(images))[1]

    def tabulated(self) -> AbstractContextManager[None]:
        """A context for generation: see `LanguageModel.tabulated`."""
        return self.language_model.tabulated()

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of generation: tokens [B] -> log-probabilities [B, V], new state."""
        return self.language_model.step(token_ids, state)
