"""What all captioners share: how images enter, the loss, and the interface of generation.

Letters: I images, B captions, R regions (1 for a pooled feature), F image feature, S image side, N
packed tokens, T longest length, H hidden, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.errors import ConfigError
from captioner.models.word_layers import output_loss
from captioner.ops import dropout

if TYPE_CHECKING:  # a machine that trains on features alone needs no torchvision
    from captioner.models.encoder import Encoder

FEATURE_NORMS = ("standardise", "l2", "none")


class BaseCaptioner(nn.Module, ABC):
    """Features, normalised, to the hidden states from which a vocabulary layer predicts words.

    `feature_norm`: "standardise" by the statistics of `set_feature_statistics`, clamped at +-6;
    "l2" divides by the norm; "none". With an `encoder`, trained with the rest, the model takes
    images. `regions` is how many regions an image must have; None takes any number.
    """

    feedback: ClassVar[bool] = False  # whether what a step attended to enters the next step

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        *,
        feature_dim: int,
        feature_norm: str = "standardise",
        feature_dropout: float = 0.0,
        encoder: Encoder | None = None,
        regions: int | None = None,
    ) -> None:
        super().__init__()
        if feature_norm not in FEATURE_NORMS:
            raise ValueError(
                f"feature_norm must be one of {', '.join(FEATURE_NORMS)}, got {feature_norm!r}"
            )
        self.encoder = encoder
        self.feature_dim, self.regions = feature_dim, regions
        self.feature_norm, self.feature_dropout = feature_norm, feature_dropout
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Mean and deviation [F] over the training images, used by "standardise"."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp(min=1e-5))

    def features(self, images: Tensor) -> Tensor:
        """Features [I, R, F] (or images [I, 3, S, S] with an encoder), normalised and with dropout.

        ConfigError where there are not R regions of F numbers.
        """
        features = images if self.encoder is None else self.encoder(images)
        found = tuple(features.shape[1:])
        if found != (self.regions or found[0], self.feature_dim):
            raise ConfigError(
                f"the model was made for {self.regions or 'any number of'} regions an image of "
                f"{self.feature_dim} numbers, got features of {found[0]} regions (1 is a pooled "
                f"feature) of {found[-1]} numbers"
            )
        if self.feature_norm == "standardise":
            features = ((features - self.feature_mean) / self.feature_std).clamp(-6, 6)
        elif self.feature_norm == "l2":
            features = F.normalize(features, dim=-1)
        return dropout(features, self.feature_dropout, self.training)

    @property
    @abstractmethod
    def output_layer(self) -> nn.Linear:
        """The last layer, from hidden states [N, H] to the vocabulary."""

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.output_layer.out_features

    @abstractmethod
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

    def forward(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
    ) -> Tensor:
        """Logits [N, V] of the packed captions' next tokens."""
        logits: Tensor = self.output_layer(self.hidden(images, image_rows, token_ids, batch_sizes))
        return logits

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
        """Summed cross-entropy of the targets in nats, weighted where `weights` are given;
        `capacity` as in `LanguageModel.hidden`."""
        hidden = self.hidden(images, image_rows, token_ids, batch_sizes, capacity=capacity)
        return self.output_loss(hidden, targets, label_smoothing, weights)

    def output_loss(
        self,
        hidden: Tensor,  # [N, H]
        targets: Tensor,  # [N]
        label_smoothing: float,
        weights: Tensor | None = None,  # [N]
    ) -> Tensor:
        """Summed cross-entropy of targets given hidden states, weighted where `weights` are."""
        return output_loss(
            self.output_layer,
            hidden,
            targets,
            label_smoothing=label_smoothing,
            backend=self.backend,
            token_weights=weights,
        )

    @property
    @abstractmethod
    def backend(self) -> str:
        """What computes the operators, see `ops.backend`."""

    @abstractmethod
    def start(self, images: Tensor) -> Any:
        """The state after reading the images, where generation begins: a pytree whose tensors have
        the image as their dimension 1."""

    @abstractmethod
    def tabulated(self) -> AbstractContextManager[None]:
        """A context for generation: see `LanguageModel.tabulated`."""

    @abstractmethod
    def step(self, token_ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step of generation: tokens [B] -> log-probabilities [B, V], new state."""
