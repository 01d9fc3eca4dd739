"""All metrics of one set of captions: those that can be computed, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from captioner.checks import one_of
from captioner.errors import DataError
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import DocumentFrequencies, cider
from captioner.evaluation.java_metrics import java_meteor, spice
from captioner.evaluation.meteor import meteor
from captioner.evaluation.meteor_words import load_word_matches
from captioner.evaluation.metric import Metric
from captioner.evaluation.ngrams import Corpus, encode
from captioner.evaluation.protocol import Protocol
from captioner.evaluation.rouge import rouge_l

FAST = ("BLEU", "ROUGE-L", "CIDEr")
METRICS = (*FAST, "METEOR-py", "METEOR", "SPICE")


@dataclass(frozen=True)
class Measured:
    """Metrics by name, in order; the reason for each that is missing; notes for the card."""

    metrics: dict[str, Metric]
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def measure(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    *,
    protocol: Protocol,
    metrics: Sequence[str] = FAST,
    table: DocumentFrequencies | None = None,
) -> Measured:
    """Score raw captions, one hypothesis and one or more references an image, by `metrics`.

    A metric that lacks something (Java, a jar) is left out and says why. ConfigError for an unknown
    name, DataError when there is nothing to score.
    """
    for name in metrics:
        one_of("metrics", name, METRICS)
    corpus = encode(references, hypotheses, protocol.tokens)
    measured = Measured({})
    for name in metrics:
        try:
            for metric in _compute(name, corpus, references, hypotheses, protocol, table, measured):
                measured.metrics[metric.name] = metric
        except DataError as error:
            measured.unavailable[name] = str(error)
    return measured


def _compute(
    name: str,
    corpus: Corpus,
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    protocol: Protocol,
    table: DocumentFrequencies | None,
    measured: Measured,
) -> Sequence[Metric]:
    if name == "BLEU":
        return bleu(corpus, brevity_penalty=protocol.brevity_penalty)
    if name == "ROUGE-L":
        return [rouge_l(corpus)]
    if name == "CIDEr":
        source = f"a table of {table.images} images" if table else "the references"
        measured.notes["cider_document_frequencies"] = source
        return cider(corpus, table)
    tokens = [[protocol.tokens(caption) for caption in of_image] for of_image in references]
    own = [protocol.tokens(caption) for caption in hypotheses]
    if name == "METEOR-py":
        knowledge = load_word_matches(_words(tokens, own))
        measured.notes["meteor_py_modules"] = list(knowledge.modules)
        return [meteor(tokens, own, knowledge)]
    by_java: Mapping[str, Callable[..., Metric]] = {"METEOR": java_meteor, "SPICE": spice}
    return [by_java[name](tokens, own)]


def _words(
    tokens: Sequence[Sequence[Sequence[str]]], own: Sequence[Sequence[str]]
) -> frozenset[str]:
    """All words, and the parts that METEOR's normaliser splits them into."""
    words = {word for of_image in tokens for one in of_image for word in one}
    words.update(word for one in own for word in one)
    parts = (word.replace("'", "-").split("-") for word in words)
    return frozenset(words) | {part for of_word in parts for part in of_word if part} | {"'"}


def averaged(rounds: Sequence[Measured]) -> Measured:
    """The mean of several measurements of the same images, which can be sampled like one."""
    means: dict[str, Metric] = {}
    for name, first in rounds[0].metrics.items():
        ours = [one.metrics[name] for one in rounds]
        width = first.statistics.shape[1]

        def combine(sums: Any, ours: Sequence[Metric] = ours, width: int = width) -> Any:
            parts = [sums[..., n * width : (n + 1) * width] for n in range(len(ours))]
            return np.mean([m.combine(part) for m, part in zip(ours, parts, strict=True)], axis=0)

        means[name] = Metric(
            name,
            np.mean([m.per_image for m in ours], axis=0),
            np.concatenate([m.statistics for m in ours], axis=1),
            combine,
        )
    return Measured(means, rounds[0].unavailable, rounds[0].notes)
