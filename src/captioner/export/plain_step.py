"""What ONNX export asks of a captioner: its steps in operators that ONNX has.

Shapes: B images, R regions, F image feature, S image size, K beams, N = B * K rows, image by image,
H hidden, V vocabulary, L layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from captioner.models.language_model import State

Memory = tuple[Tensor, ...]  # what the beams of an image share: each [B, ...]


class PlainStep(nn.Module, ABC):
    """What a captioner's `start` and `step` do on the same weights, with K rows an image: no packed
    sequences, no reads on the host, no operators of this package.

    What the beams of an image share is apart from the state: it is neither repeated nor reordered.
    """

    @abstractmethod
    def start(self, images: Tensor) -> tuple[State, Memory]:
        """Features [B, R, F], or images [B, 3, S, S] where the captioner has its own encoder, ->
        the state before the first word, each tensor [L, B, H], and what beams share."""

    @abstractmethod
    def forward(
        self, token_ids: Tensor, state: Sequence[Tensor], memory: Memory
    ) -> tuple[Tensor, State]:
        """Tokens [N] -> log-probabilities [N, V] of the next, new state, each tensor [L, N, H]."""
