"""The scores of a validation, from what the model measured. Needs no torch: it is also computed in
a process of its own."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captioner.evaluation.corpus import Corpus, encode_references, with_hypotheses
from captioner.evaluation.metrics import ScoringOptions, measure

VALIDATED = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
OPTIONS = ScoringOptions(samples=0)

# Captions by image name -> more figures (attribute accuracy of scenes, say).
ExtraMetrics = Callable[[dict[str, str]], dict[str, float]]


@dataclass(frozen=True)
class CaptionScorer:
    """Figures of one split's captions, again and again: its references are tokenised once.

    `references` by image name. From what `CaptionValidator` measured: loss (nats a token),
    perplexity, BLEU-1 to BLEU-4, ROUGE-L, CIDEr-D (in percent), the share of different captions,
    what `extra` adds, and the figures of attention that were measured.
    """

    references: Mapping[str, Sequence[str]]
    extra: ExtraMetrics | None = None

    def __call__(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Every figure. DataError where an image has no reference."""
        loss, captions = measured["loss"], measured["captions"]
        hypotheses = [captions[name] for name in self.references]
        references = list(self.references.values())
        corpus = with_hypotheses(self._encoded, hypotheses, OPTIONS.conventions.tokens)
        found = measure(references, hypotheses, OPTIONS, corpus=corpus).metrics
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            **{name: found[name].value for name in VALIDATED},
            "different_captions": len(set(hypotheses)) / len(hypotheses),
            **(self.extra(captions) if self.extra else {}),
            **measured["attention"],
        }

    @functools.cached_property
    def _encoded(self) -> Corpus:
        return encode_references(self.references.values(), OPTIONS.conventions.tokens)
