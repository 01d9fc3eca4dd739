"""Scheduled sampling (Bengio et al. 2015): some of the words that training reads are the model's.

Generation reads words that the model wrote, training those of the captions. Here each input word is
replaced, with a probability that grows from epoch to epoch, by one drawn from the model at its
place; what is to be predicted stays the caption's next word. No gradient passes through a draw.

A model with feedback draws in a loop over time, as Bengio et al. do: each word given the words
before it, the drawn ones among them. The others draw in parallel (Mihaylova and Martins 2019): one
pass over the captions' own words gives the distribution at every place, and the step's own pass
then reads captions and draws mixed.

Letters: B captions, T longest length, N packed tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captioner.data.packed import CaptionBatch
from captioner.generation.hypothesis import select_rows
from captioner.generation.sampling import draw
from captioner.generation.sequences import score_dtype
from captioner.models.base_captioner import BaseCaptioner
from captioner.ops.packing import packed_places


@dataclass(frozen=True, kw_only=True)
class SamplingSchedule:
    """The probability in an epoch, counted from 0: none in the first `start` epochs, then
    `increase`, 2 `increase`, ..., at most `ceiling`."""

    ceiling: float
    increase: float
    start: int = 0

    def __call__(self, epoch: int) -> float:
        """The probability in an epoch."""
        return min(self.ceiling, self.increase * max(0, epoch - self.start + 1))


class ScheduledSampling:
    """An objective: a batch's captions with input words replaced at the present `probability`.

    Drawn without dropout, from all words but those `banned`; <bos> stays. Random numbers are
    torch's on the CPU, whose state a checkpoint has, and none at a probability of 0. `figures`: the
    share of words that were replaced.
    """

    def __init__(
        self, model: BaseCaptioner, *, probability: Callable[[], float], banned: Sequence[int]
    ) -> None:
        self.model, self.probability, self.banned = model, probability, banned
        self._replaced = self._words = 0

    def __call__(self, batch: CaptionBatch) -> list[CaptionBatch]:
        """The batch with other input words."""
        probability, count = self.probability(), len(batch.targets)
        step, *_ = packed_places(batch.tokens.batch_sizes, count)
        self._words += int((step > 0).sum())
        if probability == 0:
            return [batch]
        replaced = (step > 0) & (torch.rand(count) < probability)
        self._replaced += int(replaced.sum())
        device = batch.targets.device
        chances = torch.rand(count, dtype=score_dtype(device))
        method = self._in_a_loop if self.model.feedback else self._in_parallel
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                inputs = method(batch, replaced.to(device), chances.to(device))
        finally:
            self.model.train(training)
        return [replace(batch, tokens=replace(batch.tokens, inputs=inputs))]

    def figures(self) -> dict[str, tuple[float, float]]:
        """Of each figure a sum since the last call, and the number that it is to be divided by."""
        found = {"sampled_words": (float(self._replaced), float(self._words))}
        self._replaced = self._words = 0
        return found

    def _in_parallel(self, batch: CaptionBatch, replaced: Tensor, chances: Tensor) -> Tensor:
        """Inputs [N] with draws that each follow the caption's own words."""
        inputs, sizes = batch.tokens.inputs, batch.tokens.batch_sizes
        hidden = self.model.hidden(*batch.model_inputs)
        places = replaced.nonzero().squeeze(1)
        step, sequence, _ = packed_places(sizes, len(inputs))
        before = (sizes.cumsum(0) - sizes)[(step - 1).clamp(min=0)] + sequence
        asked = hidden.index_select(0, before.to(places.device)[places])
        drawn = self._drawn(self.model.output_layer(asked), chances[places])
        return inputs.index_copy(0, places, drawn)

    def _in_a_loop(self, batch: CaptionBatch, replaced: Tensor, chances: Tensor) -> Tensor:
        """Inputs [N] with draws that each follow what is read before them."""
        sizes: list[int] = batch.tokens.batch_sizes.tolist()
        state = select_rows(self.model.start(batch.images), batch.image_rows)
        parts = (x.split(sizes) for x in (batch.tokens.inputs, replaced, chances))
        read: list[Tensor] = []
        for own, taken, chance in zip(*parts, strict=True):
            if read:
                last = read[-1][: len(own)]
                if len(own) < len(read[-1]):
                    state = select_rows(state, torch.arange(len(own), device=own.device))
                log_probs, state = self.model.step(last, state)
                own = torch.where(taken, self._drawn(log_probs, chance), own)
            read.append(own)
        return torch.cat(read)

    def _drawn(self, scores: Tensor, chances: Tensor) -> Tensor:
        """A word [M] a row of logits or log-probabilities [M, V]."""
        banned = torch.tensor(self.banned, device=scores.device)
        return draw(scores.to(chances).index_fill(1, banned, -math.inf).softmax(1), chances)
