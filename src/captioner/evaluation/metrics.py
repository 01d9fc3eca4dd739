"""All metrics of one set of captions: those that can be computed, and why the others cannot."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np

from captioner.checks import one_of
from captioner.errors import DataError
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import DocumentFrequencies, cider, overlap
from captioner.evaluation.corpus import Corpus, Floats, encode
from captioner.evaluation.java_metrics import java_meteor, spice
from captioner.evaluation.meteor import meteor, normalised
from captioner.evaluation.meteor_words import load_knowledge
from captioner.evaluation.metric import SAMPLES, Metric
from captioner.evaluation.protocol import PROTOCOLS, Protocol
from captioner.evaluation.rouge import rouge_l

FAST = ("BLEU", "ROUGE-L", "CIDEr")
METRICS = (*FAST, "METEOR-py", "METEOR", "SPICE")


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How captions are scored: by which `metrics` (of METRICS) and under which conventions.

    `brevity_penalty` None is the protocol's own; `table` gives CIDEr document frequencies from
    elsewhere; `samples` is the size of the bootstrap, 0 for no intervals. ConfigError for an
    unknown metric or protocol.
    """

    metrics: Sequence[str] = FAST
    protocol: str = "coco"
    brevity_penalty: bool | None = None
    table: DocumentFrequencies | None = None
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        for name in self.metrics:
            one_of("metrics", name, METRICS)
        one_of("protocol", self.protocol, tuple(PROTOCOLS))

    @property
    def conventions(self) -> Protocol:
        """The protocol with the brevity penalty that holds."""
        protocol = PROTOCOLS[self.protocol]
        if self.brevity_penalty is None:
            return protocol
        return replace(protocol, brevity_penalty=self.brevity_penalty)


@dataclass(frozen=True)
class Measured:
    """Metrics by name, in order; the reason for each that is missing; notes for the card."""

    metrics: dict[str, Metric]
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def measure(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    options: ScoringOptions | None = None,
    *,
    corpus: Corpus | None = None,
) -> Measured:
    """Score raw captions, one hypothesis and one or more references an image.

    `corpus` is what `encode` makes of them as `options` say, if it is known.
    A metric that lacks something (Java, a jar) is left out and says why. DataError when there is
    nothing to score.
    """
    options = options or ScoringOptions()
    tokens_of = options.conventions.tokens
    if corpus is None:
        corpus = encode(references, hypotheses, tokens_of)
    measured = Measured({})

    counted = cache(lambda: overlap(corpus, options.table))

    def tokenised() -> tuple[Any, Any]:
        tokens = [[tokens_of(caption) for caption in of_image] for of_image in references]
        return tokens, [tokens_of(caption) for caption in hypotheses]

    def compute(name: str) -> list[Metric]:
        match name:
            case "BLEU":
                penalty = options.conventions.brevity_penalty
                return bleu(corpus, brevity_penalty=penalty, matches=counted()[0])
            case "ROUGE-L":
                return [rouge_l(corpus)]
            case "CIDEr":
                images = f"a table of {options.table.images} images" if options.table else None
                measured.notes["cider_document_frequencies"] = images or "the references"
                return cider(corpus, options.table, products=counted()[1])
            case "METEOR-py":
                words = normalised(corpus)
                modules, knowledge = load_knowledge(frozenset(words.vocabulary))
                measured.notes["meteor_py_modules"] = list(modules)
                return [meteor(words, knowledge)]
        return [(java_meteor if name == "METEOR" else spice)(*tokenised())]

    for name in options.metrics:
        try:
            measured.metrics.update({metric.name: metric for metric in compute(name)})
        except DataError as error:
            measured.unavailable[name] = str(error)
    return measured


def averaged(rounds: Sequence[Measured]) -> Measured:
    """The mean of several measurements of the same images, which can be sampled like one."""

    def combine(ours: Sequence[Metric], sums: Floats) -> Floats:
        parts = np.split(sums, len(ours), axis=-1)
        each = [m.combine(part) for m, part in zip(ours, parts, strict=True)]
        return np.asarray(np.mean(each, axis=0))

    means: dict[str, Metric] = {}
    for name in rounds[0].metrics:
        ours = [one.metrics[name] for one in rounds]
        statistics = np.concatenate([m.statistics for m in ours], axis=1)
        per_image = np.mean([m.per_image for m in ours], axis=0)
        means[name] = Metric(name, per_image, statistics, partial(combine, ours))
    return Measured(means, rounds[0].unavailable, rounds[0].notes)
