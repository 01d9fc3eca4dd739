"""The steps of every kind of captioner for ONNX, see `PlainStep`.

Shapes: B images, K beams, N = B * K rows, image by image, E embedding, H hidden, A attention.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captioner.errors import ConfigError
from captioner.export.plain_attention import PlainAttention
from captioner.export.plain_rnn import PlainRnn
from captioner.export.plain_step import Memory, PlainStep
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.captioner import Captioner
from captioner.models.language_model import State
from captioner.models.layered_attention import LayeredAttention


class PlainShowAndTell(PlainStep):
    """`Captioner`: an image's regions are words before the first, and beams share nothing."""

    def __init__(self, model: Captioner, beam_size: int) -> None:
        super().__init__()
        self.model = model
        self.rnn = PlainRnn(model.language_model.lstm)

    def start(self, images: Tensor) -> tuple[State, Memory]:
        """See `PlainStep`."""
        return self.rnn.read(self.model.embed_images(images)), ()

    def forward(
        self, token_ids: Tensor, state: Sequence[Tensor], memory: Memory
    ) -> tuple[Tensor, State]:
        """See `PlainStep`."""
        words = self.model.language_model
        hidden, state = self.rnn(words.embedding(token_ids), state)
        return words.log_probs(hidden), state


class PlainLayeredAttention(PlainStep):
    """`LayeredAttention`: the state of its first LSTM and of its second, if any."""

    def __init__(self, model: LayeredAttention, beam_size: int) -> None:
        super().__init__()
        self.model = model
        self.attention = PlainAttention(model.attention, beam_size)
        self.first = PlainRnn(model.language_model.lstm)
        self.second = None if model.second is None else PlainRnn(model.second)

    def start(self, images: Tensor) -> tuple[State, Memory]:
        """See `PlainStep`."""
        prefix, memory = self.model.read_images(images)
        _, first = self.first(prefix[0], self.first.zeros(prefix[0]))
        second = () if self.second is None else self.second.zeros(prefix[0])
        return (*first, *second), (memory.keys, memory.values)

    def forward(
        self, token_ids: Tensor, state: Sequence[Tensor], memory: Memory
    ) -> tuple[Tensor, State]:
        """See `PlainStep`."""
        words = self.model.language_model
        count = len(state) if self.second is None else len(state) // 2
        hidden, first = self.first(words.embedding(token_ids), state[:count])
        context = self.attention(hidden, *memory)
        joined, second = self._joined(hidden, context, state[count:])
        return words.log_probs(joined), (*first, *second)

    def _joined(
        self,
        hidden: Tensor,  # [N, H]
        context: Tensor,  # [N, A]
        state: Sequence[Tensor],
    ) -> tuple[Tensor, State]:
        """y [N, H], and the second LSTM's state."""
        model, both = self.model, torch.cat([hidden, context], 1)
        if self.second is not None:
            output, state = self.second(both, state)
            return hidden + output, state
        if model.join == "concat":
            return model.context_projection(both).tanh(), ()
        gate = model.gate(both).sigmoid()
        return gate * hidden + (1 - gate) * model.context_projection(context).tanh(), ()


# Of the model's class: a function of the model and of K.
PLAIN_STEPS: dict[type[BaseCaptioner], Callable[[Any, int], PlainStep]] = {
    Captioner: PlainShowAndTell,
    LayeredAttention: PlainLayeredAttention,
}


def plain_step(captioner: BaseCaptioner, *, beam_size: int) -> PlainStep:
    """The steps of a captioner; ConfigError for a kind that is not in `PLAIN_STEPS`."""
    found = PLAIN_STEPS.get(type(captioner))
    if found is None:
        names = ", ".join(one.__name__ for one in PLAIN_STEPS)
        raise ConfigError(
            f"format=onnx exports captioners of the classes {names}, not {type(captioner).__name__}"
        )
    return found(captioner, beam_size)
