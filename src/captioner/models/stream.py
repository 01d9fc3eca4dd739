"""A language model with nothing in front, reading a stream window by window.

Shapes: B streams, S packed sequences, T longest length, N packed tokens, V vocabulary, L layers,
H hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captioner.errors import CheckpointError
from captioner.models.language_model import LanguageModel


class StreamModel(nn.Module):
    """Truncated backpropagation through time (Williams & Peng 1990): the state at a window's end,
    without its gradient, begins the next one. `carried_state` is not in the state_dict."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.language_model = language_model
        self._state: tuple[Tensor, ...] = ()

    def forward(
        self,
        inputs: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        origins: Tensor,  # [S] the stream that each sequence continues, -1 for none
        last_sequences: Tensor,  # [B] the sequence whose last state each stream keeps
    ) -> Tensor:
        """Logits [N, V] of the tokens that come next."""
        logits, state = self.language_model(inputs, batch_sizes, state=self.begin(origins))
        self.keep(state, last_sequences)
        return logits

    def loss(
        self,
        inputs: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        origins: Tensor,  # [S] the stream that each sequence continues, -1 for none
        last_sequences: Tensor,  # [B] the sequence whose last state each stream keeps
        targets: Tensor,  # [N] the token after each
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Summed cross-entropy of the targets in nats."""
        if self._state and self._state[0].shape[1] != len(last_sequences):
            raise CheckpointError(
                f"the carried state is of {self._state[0].shape[1]} streams, expected "
                f"{len(last_sequences)}"
            )
        before = self.begin(origins)
        loss, state = self.language_model.loss(
            inputs, batch_sizes, targets, state=before, label_smoothing=label_smoothing
        )
        self.keep(state, last_sequences)
        return loss

    def begin(self, origins: Tensor) -> tuple[Tensor, ...] | None:
        """The state [L, S, H] that the sequences begin with; None while there is none."""
        if not self._state:
            return None
        rows, continues = origins.clamp(min=0), (origins >= 0).unsqueeze(1)
        return tuple(torch.where(continues, h.index_select(1, rows), 0.0) for h in self._state)

    def keep(self, state: Sequence[Tensor], last_sequences: Tensor) -> None:
        """Take over the state [L, S, H] that a window ends with."""
        self._state = tuple(h.detach().index_select(1, last_sequences) for h in state)

    def carried_state(self) -> list[Tensor]:
        """The state of all streams, each tensor [L, B, H]; empty before the first window."""
        return [*self._state]

    def load_carried_state(self, state: Sequence[Tensor]) -> None:
        """Continue from what `carried_state` gave; ValueError where it is of another model."""
        device, layers = self.language_model.embedding.weight.device, self.language_model.lstm
        streams = state[0].shape[1] if state and state[0].dim() == 3 else 0
        expected = [(layers.num_layers, streams, layers.hidden_size)]
        expected *= 2 if layers.mode == "LSTM" else 1  # h and c
        if state and [tuple(h.shape) for h in state] != expected:
            found = [list(h.shape) for h in state]
            raise ValueError(f"a carried state {found}, expected {[list(one) for one in expected]}")
        self._state = tuple(h.to(device) for h in state)
