"""Captioners with feedback: what a step attended to, or what came of it, enters the next step.

Each step then is a call of its own: a loop over time, over the packed layout, so that a step
computes nothing for sequences that have ended. What does not depend on the step before (embeddings
and their part of the LSTM's gates, keys and values, and what follows the last LSTM) is computed for
all steps at once, and so are the gradients of the weights that a step multiplies with
(`RepeatedLinear`).

Letters: I images, B sequences, b sequences at a step, R regions, F image feature, S image side, N
packed tokens, T longest length, E embedding, H hidden, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from captioner.models.attending_captioner import AttendingCaptioner
from captioner.models.attention import ImageMemory
from captioner.models.token_groups import TokenGroups, group_by_image
from captioner.ops.lstm_cell import lstm_cell
from captioner.ops.packing import packed_places
from captioner.profiling import backward_ends, span

State = tuple[Tensor, ...]  # each [1, B, H]
# Gates as `given` [b, 4H], state, memory, groups of the step's tokens -> the step and its state.
Advance = Callable[[Tensor, State, ImageMemory, TokenGroups], tuple["Step", State]]


@dataclass(frozen=True)
class FeedbackMemory:
    """What is kept of images, in generation as one leaf of the state: their regions' keys and
    values, and the mean of their regions [I, H]."""

    regions: ImageMemory
    mean: Tensor


@dataclass(frozen=True)
class Step:
    """What a step gives: h of the last LSTM [b, H], the context [b, H] that it had, and the weights
    [b, R] of the regions; of several steps, one after another, [N, ...]."""

    hidden: Tensor
    context: Tensor
    weights: Tensor


class FeedbackCaptioner(AttendingCaptioner):
    """The loop over time; arguments as `AttendingCaptioner`. A subclass says what a step is."""

    feedback: ClassVar[bool] = True

    @abstractmethod
    def begin(self, mean: Tensor) -> State:
        """The state before the first word, given the mean of the regions [I, H]."""

    @abstractmethod
    def given(
        self,
        words: Tensor,  # [N, E]
        mean: Tensor,  # [I, H] of the regions
        images: Tensor,  # [N] which image each token describes
    ) -> Tensor:
        """What words and images contribute to the gates of the first LSTM, [N, 4H]."""

    @abstractmethod
    def loop(self) -> Advance:
        """One step of all sequences that have one, to be called once a step of one loop."""

    @abstractmethod
    def finish(self, words: Tensor, steps: Step) -> Tensor:
        """What the output layer reads, [N, H], after words [N, E] and their steps."""

    def read_images(self, images: Tensor) -> FeedbackMemory:
        """What is kept of the images."""
        with span("image"):
            regions = self.project_regions(self.features(images))
            return FeedbackMemory(self.attention.memory(regions), regions.mean(1))

    def hidden(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        *,
        capacity: bool = False,
    ) -> Tensor:
        """What `output_layer` reads after each token, [N, H]; ValueError with `capacity`, because
        every step reads its length on the host."""
        if capacity:
            raise ValueError(f"capacity needs a model without feedback, not {type(self).__name__}")
        return self.unrolled(images, image_rows, token_ids, batch_sizes)[0]

    def attention_maps(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
    ) -> Tensor:
        """Where the model looks for the word after each token, [N, R]."""
        return self.unrolled(images, image_rows, token_ids, batch_sizes)[1]

    def unrolled(
        self,
        images: Tensor,  # [I, R, F] or [I, 3, S, S]
        image_rows: Tensor,  # [B] which image each caption describes
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
    ) -> tuple[Tensor, Tensor]:
        """What `output_layer` reads after each token, [N, H], and the weights of the regions [N, R]
        with which the word after each token was chosen."""
        memory = self.read_images(images)
        sizes: list[int] = batch_sizes.tolist()
        drop = self.words.drop(batch_sizes, sizes[0], len(token_ids))
        with span("embedding"):
            words = drop(self.words.embed(token_ids), self.words.dropout.input)
            _, sequence, _ = packed_places(batch_sizes, len(token_ids))
            token_images = image_rows.index_select(0, sequence.to(image_rows.device))
            given = self.given(words, memory.mean, token_images).split(sizes)
            state = tuple(x.index_select(1, image_rows) for x in self.begin(memory.mean))
        backward_ends("LSTM and attention, backward", words)
        with span("LSTM and attention"):
            advance, steps, groups = self.loop(), list[Step](), None
            for size, gates in zip(sizes, given, strict=True):
                if groups is None or size < len(groups.slots):
                    groups = group_by_image(image_rows[:size], images=memory.regions.images)
                state = tuple(x[:, :size] for x in state)
                step, state = advance(gates, state, memory.regions, groups)
                steps.append(step)
            whole = Step(*(torch.cat([getattr(x, name) for x in steps]) for name in _PARTS))
        hidden = drop(self.finish(words, whole), self.words.dropout.output)
        return hidden, whole.weights

    def start(self, images: Tensor) -> tuple[Any, ...]:
        """The state before the first word: the LSTMs', each image's number [1, I], and what is kept
        of the images, which beams share."""
        memory = self.read_images(images.to(self.feature_mean.device))
        numbers = torch.arange(len(memory.mean), device=memory.mean.device).unsqueeze(0)
        return (*self.begin(memory.mean), numbers, memory)

    def step(self, token_ids: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """One step of generation: tokens [B] -> log-probabilities [B, V], new state."""
        *recurrent, numbers, memory = state
        words = self.words.embedding(token_ids)
        given = self.given(words, memory.mean, numbers[0])
        groups = group_by_image(numbers[0], images=memory.regions.images)
        found, after = self.loop()(given, tuple(recurrent), memory.regions, groups)
        return self.words.log_probs(self.finish(words, found)), (*after, numbers, memory)


_PARTS = ("hidden", "context", "weights")


def cell(gates: Tensor, state: State) -> State:
    """h and c after gates [b, 4H] and the h and c before, each [1, b, H]."""
    h, c = lstm_cell(gates, state[1][0])
    return h.unsqueeze(0), c.unsqueeze(0)
