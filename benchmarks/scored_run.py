"""A run as training is: epochs, and after each the captions of a dev set, searched and scored.

Scores are those that need no tokeniser's data: BLEU and CIDEr-D. Drawn captions have no meaning
for a model to find, but cost what real ones cost. Shapes: n images, F image feature.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.training import GraphSteps, Training
from captioner.data.captions import CaptionedImage
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import cider
from captioner.evaluation.ngrams import encode
from captioner.generation import Constraints, beam_search
from captioner.inference.captions import CaptionGenerator

BEAM_SIZE, LONGEST = 3, 30  # as the defaults of generation
AT_ONCE = 1000  # images


class ScoredRun:
    """A captioner that trains by the graph's steps, and dev images to caption after each epoch."""

    def __init__(
        self,
        name: str,
        training: Training,
        dev: Sequence[CaptionedImage],
        dev_features: Tensor,  # [n, 1, F]
    ) -> None:
        self.training = GraphSteps(training, name.split()[-1])
        self.dev, self.features = dev, dev_features.to(training.device)
        words = training.data.vocabulary
        ends: dict[str, Any] = {"bos": words.bos, "eos": words.eos, "max_length": LONGEST}
        constraints = Constraints(
            **ends, length_penalty=0.0, banned=(words.pad, words.bos, words.unk)
        )
        search = functools.partial(
            beam_search, constraints=constraints, beam_size=BEAM_SIZE, n_best=1
        )
        self.generator = CaptionGenerator(self.training.model, words, search)

    def train_and_score(self) -> dict[str, float]:
        """One epoch, then the dev set's scores in percent."""
        self.training.model.train()
        self.training.steps(len(self.training.order))
        batches = self.features.split(AT_ONCE)
        captions = [found[0].text for found in self.generator.all_captions(batches)]
        corpus = encode([image.captions for image in self.dev], captions, str.split)
        metrics = [*bleu(corpus), *cider(corpus)]
        return {metric.name: round(metric.value, 4) for metric in metrics}
