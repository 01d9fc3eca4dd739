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
from captioner.models.adaptive_attention import AdaptiveAttention
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.captioner import Captioner
from captioner.models.language_model import State
from captioner.models.layered_attention import LayeredAttention
from captioner.models.show_attend_tell import ShowAttendTell
from captioner.models.up_down import UpDown


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
        hidden, after = self.rnn(words.embedding(token_ids), state)
        return words.log_probs(hidden), after


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
            output, after = self.second(both, state)
            return hidden + output, after
        if model.join == "concat":
            return model.context_projection(both).tanh(), ()
        gate = model.gate(both).sigmoid()
        return gate * hidden + (1 - gate) * model.context_projection(context).tanh(), ()


class PlainAdaptiveAttention(PlainStep):
    """`AdaptiveAttention`: the LSTM's state; beams share keys, values and the whole image."""

    def __init__(self, model: AdaptiveAttention, beam_size: int) -> None:
        super().__init__()
        self.model, self.beam_size = model, beam_size
        self.attention = PlainAttention(model.attention, beam_size)
        self.rnn = PlainRnn(model.lstm)

    def start(self, images: Tensor) -> tuple[State, Memory]:
        """See `PlainStep`."""
        whole, memory = self.model.read_images(images)
        return self.rnn.zeros(whole), (memory.keys, memory.values, whole)

    def forward(
        self, token_ids: Tensor, state: Sequence[Tensor], memory: Memory
    ) -> tuple[Tensor, State]:
        """See `PlainStep`."""
        model, (keys, values, whole) = self.model, memory
        own = whole.repeat_interleave(self.beam_size, dim=0)
        inputs = torch.cat([model.words.embedding(token_ids), own], 1)
        gate = (model.sentinel_input(inputs) + model.sentinel_hidden(state[0][0])).sigmoid()
        hidden, after = self.rnn(inputs, state)
        context = self.attention(hidden, keys, values, gate * after[1][0].tanh())
        return model.words.log_probs(context + hidden), after


class PlainShowAttendTell(PlainStep):
    """`ShowAttendTell`: the LSTM's state."""

    def __init__(self, model: ShowAttendTell, beam_size: int) -> None:
        super().__init__()
        self.model = model
        self.attention = PlainAttention(model.attention, beam_size)
        self.rnn = PlainRnn(model.lstm)

    def start(self, images: Tensor) -> tuple[State, Memory]:
        """See `PlainStep`."""
        memory = self.model.read_images(images)
        return self.model.begin(memory.mean), (memory.regions.keys, memory.regions.values)

    def forward(
        self, token_ids: Tensor, state: Sequence[Tensor], memory: Memory
    ) -> tuple[Tensor, State]:
        """See `PlainStep`."""
        model, before = self.model, state[0][0]
        words = model.words.embedding(token_ids)
        context = model.gate(before).sigmoid() * self.attention(before, *memory)
        hidden, after = self.rnn(torch.cat([words, context], 1), state)
        output = model.deep_output(torch.cat([words, hidden, context], 1)).tanh()
        return model.words.log_probs(output), after


class PlainUpDown(PlainStep):
    """`UpDown`: both LSTMs' states; beams share keys, values and the mean of the regions."""

    def __init__(self, model: UpDown, beam_size: int) -> None:
        super().__init__()
        self.model, self.beam_size = model, beam_size
        self.attention = PlainAttention(model.attention, beam_size)
        self.first, self.second = PlainRnn(model.attention_lstm), PlainRnn(model.language_lstm)

    def start(self, images: Tensor) -> tuple[State, Memory]:
        """See `PlainStep`."""
        memory = self.model.read_images(images)
        regions = memory.regions
        return self.model.begin(memory.mean), (regions.keys, regions.values, memory.mean)

    def forward(
        self, token_ids: Tensor, state: Sequence[Tensor], memory: Memory
    ) -> tuple[Tensor, State]:
        """See `PlainStep`."""
        words, (keys, values, mean) = self.model.words, memory
        means = mean.repeat_interleave(self.beam_size, dim=0)
        inputs = torch.cat([words.embedding(token_ids), means, state[2][0]], 1)
        asked, first = self.first(inputs, state[:2])
        context = self.attention(asked, keys, values)
        hidden, second = self.second(torch.cat([context, asked], 1), state[2:])
        return words.log_probs(hidden), (*first, *second)


# Of the model's class: a function of the model and of K.
PLAIN_STEPS: dict[type[BaseCaptioner], Callable[[Any, int], PlainStep]] = {
    Captioner: PlainShowAndTell,
    LayeredAttention: PlainLayeredAttention,
    AdaptiveAttention: PlainAdaptiveAttention,
    ShowAttendTell: PlainShowAttendTell,
    UpDown: PlainUpDown,
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
