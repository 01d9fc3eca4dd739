"""A run as training is: passes, and after each the captions of a dev set, searched and scored.

Scores are those that need no tokeniser's data: BLEU and CIDEr-D. Drawn captions have no meaning
for a model to find, but cost what real ones cost. Shapes: n images, F image feature.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.epoch_data import DrawnCaptions
from benchmarks.epoch_passes import PassSettings
from benchmarks.own_passes import GraphPasses
from captioner.data.captions import CaptionedImage
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import cider
from captioner.evaluation.ngrams import encode
from captioner.generation import Constraints, beam_search
from captioner.inference.captions import CaptionGenerator

BEAM_SIZE, LONGEST = 3, 30  # as the defaults of generation
AT_ONCE = 1000  # images


class ScoredRun:
    """A captioner that trains by the graph's steps, and dev images to caption after each pass."""

    def __init__(
        self,
        settings: PassSettings,
        data: DrawnCaptions,
        dev: Sequence[CaptionedImage],
        dev_features: Tensor,  # [n, 1, F]
        device: torch.device,
    ) -> None:
        self.passes = GraphPasses(settings, data, device)
        self.steps_a_pass = len(self.passes.order)
        self.dev, self.features = dev, dev_features.to(device)
        words = data.vocabulary
        search = functools.partial(
            beam_search,
            constraints=Constraints(
                bos=words.bos,
                eos=words.eos,
                max_length=LONGEST,
                length_penalty=0.0,
                banned=(words.pad, words.bos, words.unk),
            ),
            beam_size=BEAM_SIZE,
            n_best=1,
        )
        self.generator = CaptionGenerator(self.passes.model, words, search)

    def train_and_score(self) -> dict[str, float]:
        """One pass, then the dev set's scores in percent."""
        self.passes.model.train()
        self.passes.steps(self.steps_a_pass)
        batches = self.features.split(AT_ONCE)
        captions = [found[0].text for found in self.generator.all_captions(batches)]
        corpus = encode([image.captions for image in self.dev], captions, str.split)
        metrics = [*bleu(corpus), *cider(corpus)]
        return {metric.name: round(metric.value, 4) for metric in metrics}
