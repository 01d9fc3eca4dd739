"""Training on a score of whole sentences: self-critical sequence training (Rennie et al. 2017).

The model p is a policy that draws sentences w of an image; their expected reward is maximised by

    grad E[r(w)] = E[(r(w) - b) grad log p(w)]                        (REINFORCE, Williams 1992)

for any baseline b that does not depend on w. K sentences are drawn of each image; b is the mean
reward of its K - 1 others (Luo 2020), or the reward of the greedy sentence (Rennie et al.). The K
sentences may also be the beams of a search (Cornia et al. 2020), all of them likely: the gradient
then is no longer that of the expected reward. So the loss of S sentences is a weighted
cross-entropy,

    - 1/S sum_k (r_k - b_k) sum_t log p(w_kt),

and a step that of cross-entropy on other captions: all time steps of all sentences at once. The sum
over a sentence's words is not divided by its length, as the gradient of E[r] has it.

Letters: I images, K samples an image, S = I K sentences, N packed tokens, R regions, F image
feature, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.data.packed import CaptionBatch, TokenStore
from captioner.errors import ConfigError, NumericsError
from captioner.generation import Constraints, Hypothesis, beam_search, greedy, sample
from captioner.models.base_captioner import BaseCaptioner
from captioner.ops.packing import packed_places

# Sentences as token ids, each with <eos> where it has ended, and the image of each -> rewards [S].
Reward = Callable[[Sequence[Sequence[int]], Sequence[int]], Any]

BASELINES = ("others", "greedy")
SEARCHES = ("sample", "beam")
FIGURES = ("reward", "reward_spread", "entropy")


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """How many `samples` an image gets, of at most `max_length` words, drawn (`search` "sample") or
    the beams of a search ("beam"); the `baseline`, "others" or "greedy"; whether advantages are
    divided by their deviation over the batch (`normalise`); the share of the references'
    cross-entropy in the loss (`cross_entropy`).

    Raises ConfigError for a sample whose baseline would be the mean of no others.
    """

    samples: int = 5
    search: str = "sample"
    baseline: str = "others"
    normalise: bool = False
    cross_entropy: float = 0.0
    max_length: int = 30

    def __post_init__(self) -> None:
        for name, value, known in (
            ("baseline", self.baseline, BASELINES),
            ("search", self.search, SEARCHES),
        ):
            if value not in known:
                raise ConfigError(f"the {name} must be one of {', '.join(known)}, got {value!r}")
        if self.baseline == "others" and self.samples < 2:
            raise ConfigError(
                f"the mean of an image's other samples needs 2 samples or more, got {self.samples};"
                " take the greedy baseline"
            )


class RewardObjective:
    """Draws sentences of a batch's images and weights them by their advantages.

    Drawn from the model itself, without dropout or constraints: where training has no dropout
    either, the gradient is exactly that of the expected reward. Random numbers are torch's on the
    CPU, whose state a checkpoint has. `figures`: the mean reward, its deviation among an image's
    samples, and the mean surprisal of the words drawn, an estimate of the model's entropy (nats a
    token).
    """

    def __init__(
        self,
        model: BaseCaptioner,
        *,
        reward: Reward,
        bos: int,
        eos: int,
        settings: RewardSettings | None = None,
    ) -> None:
        self.model, self.reward, self.bos, self.eos = model, reward, bos, eos
        self.settings = settings or RewardSettings()
        self.constraints = Constraints(bos=bos, eos=eos, max_length=self.settings.max_length)
        self._sums = np.zeros((len(FIGURES), 2))

    def __call__(self, batch: CaptionBatch) -> list[CaptionBatch]:
        """The samples of the batch's images with their weights and, with a share of cross-entropy,
        the batch's own captions with theirs."""
        samples, best = self._draw(batch.images)
        return self.weighted(batch, samples, best)

    def figures(self) -> dict[str, tuple[float, float]]:
        """Of each figure a sum since the last call, and the number that it is to be divided by."""
        sums, self._sums = self._sums.tolist(), np.zeros_like(self._sums)
        return {name: (total, count) for name, (total, count) in zip(FIGURES, sums, strict=True)}

    @torch.no_grad()
    def _draw(self, images: Tensor) -> tuple[list[list[Hypothesis]], list[list[Hypothesis]]]:
        """K sentences of each image, and the greedy one where that is the baseline."""
        training, best = self.model.training, []
        self.model.eval()
        try:
            state = self.model.start(images)
            given: Any = (self.model.step, state, self.constraints)
            count, size = self.settings.samples, len(images)
            if self.settings.search == "beam":
                beams = beam_search(*given, batch_size=size, beam_size=count)
                # A vocabulary smaller than the beams leaves some of them empty.
                found = [[*each, *[each[0]] * (count - len(each))] for each in beams]
            else:
                found = sample(*given, batch_size=size, samples=count)
            if self.settings.baseline == "greedy":
                best = greedy(*given, batch_size=size)
        finally:
            self.model.train(training)
        return found, best

    def weighted(
        self,
        batch: CaptionBatch,
        samples: Sequence[Sequence[Hypothesis]],
        best: Sequence[Sequence[Hypothesis]] = (),
    ) -> list[CaptionBatch]:
        """As a call, of sentences that are drawn: `samples` [I, K], and the greedy ones [I, 1]."""
        assert batch.image_numbers is not None
        numbers = batch.image_numbers.tolist()
        rewards = self._rewards(samples, numbers)
        if self.settings.baseline == "greedy":
            advantages = rewards - self._rewards(best, numbers)
        else:
            advantages = rewards - (rewards.sum(1, keepdims=True) - rewards) / (
                rewards.shape[1] - 1
            )
        if self.settings.normalise:
            advantages = advantages / max(float(advantages.std()), 1e-8)
        self._count(rewards, samples)
        drawn = self._packed(batch, samples, torch.from_numpy(advantages))
        share = self.settings.cross_entropy
        if share == 0:
            return [drawn]
        # The step divides by the tokens of both; each is to be the mean that it is alone.
        own, others = drawn.targets.numel(), batch.targets.numel()
        assert drawn.weights is not None
        of_drawn = drawn.weights * ((1 - share) * (own + others) / own)
        of_references = torch.full_like(drawn.weights[:1], share * (own + others) / others)
        return [
            replace(drawn, weights=of_drawn),
            replace(batch, weights=of_references.expand(others)),
        ]

    def _rewards(self, samples: Sequence[Sequence[Hypothesis]], numbers: Sequence[int]) -> Any:
        """The reward of each sentence, [I, K]; NumericsError where one is no finite number."""
        words = [self._tokens(one) for of_image in samples for one in of_image]
        images = [n for n, of_image in zip(numbers, samples, strict=True) for _ in of_image]
        rewards = np.asarray(self.reward(words, images), np.float64)
        wrong = np.flatnonzero(~np.isfinite(rewards))
        if len(wrong):
            first = int(wrong[0])
            raise NumericsError(
                f"the reward of {len(wrong)} of {len(words)} samples is no finite number: "
                f"{rewards[first]} for tokens {words[first]} of training image {images[first]}"
            )
        return rewards.reshape(len(samples), -1)

    def _tokens(self, one: Hypothesis) -> list[int]:
        return [*one.token_ids, self.eos] if one.finished else [*one.token_ids]

    def _count(self, rewards: Any, samples: Sequence[Sequence[Hypothesis]]) -> None:
        """Add to the figures."""
        surprisals = [-value for each in samples for one in each for value in one.log_probs]
        self._sums += [
            [rewards.sum(), rewards.size],
            [rewards.std(axis=1).sum(), len(rewards)],
            [math.fsum(surprisals), len(surprisals)],
        ]

    def _packed(
        self, batch: CaptionBatch, samples: Sequence[Sequence[Hypothesis]], advantages: Tensor
    ) -> CaptionBatch:
        """The samples as captions of the batch's images, weighted by their advantages [I, K]: the
        summed loss over the number of tokens is the mean over sentences."""
        framed = [[self.bos, *self._tokens(one)] for of_image in samples for one in of_image]
        tokens, order = TokenStore.of_framed(framed).pack(torch.arange(len(framed)))
        count = len(tokens.targets)
        _, sequence, _ = packed_places(tokens.batch_sizes, count)
        weights = advantages.flatten()[order][sequence] * (count / len(framed))
        rows = order // advantages.shape[1]
        weights = weights.to(self.model.output_layer.weight.dtype)
        drawn = CaptionBatch(batch.images, rows, tokens, batch.image_numbers, weights)
        return drawn.to(batch.images.device)
