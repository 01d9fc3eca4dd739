"""Checks of a score: statistics of the captions, scores of baselines, and warnings."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from captioner.data.tokenize import coco_tokens
from captioner.errors import DataError
from captioner.evaluation import baselines
from captioner.evaluation.coco_format import ImageId
from captioner.evaluation.corpus import encode_captions
from captioner.evaluation.leakage import Leakage

Scorer = Callable[[Mapping[ImageId, str]], dict[str, float]]
METRIC = "CIDEr-D"  # what warnings compare: it tells specific captions from safe ones


@dataclass(frozen=True)
class TrainingSet:
    """What the model was trained on, to compare its captions with; everything may be missing.

    `captions` a list an image, with `training_features` [N, F], and `features` [I, F] of the scored
    images in their order; `vocabulary` the number of words the model knows.
    """

    captions: Sequence[Sequence[str]] = ()
    training_features: baselines.Features | None = None
    features: baselines.Features | None = None
    vocabulary: int | None = None
    leakage: Leakage | None = None


def describe_captions(captions: Collection[str]) -> dict[str, Any]:
    """How varied and how long captions are, counted on the evaluation's tokens.

    Shares lie between 0 and 1, lengths are in words; without captions all are 0. `words_used` is
    the number of different words, `lengths` says how many captions have each length.
    """
    sentences, vocabulary = encode_captions(captions, {}, coco_tokens)
    words, names = sentences.words, [*vocabulary]
    written = memoryview(words.tobytes())
    bounds = pairwise((words.itemsize * sentences.starts()).tolist())
    frequencies = Counter(written[a:b].tobytes() for a, b in bounds)
    commonest, times = frequencies.most_common(1)[0] if frequencies else (b"", 0)
    lengths = np.bincount(sentences.lengths)
    count = max(1, len(sentences.lengths))
    return {
        "captions": len(sentences.lengths),
        "distinct_share": round(len(frequencies) / count, 4),
        "commonest": " ".join(names[word] for word in np.frombuffer(commonest, words.dtype)),
        "commonest_share": round(times / count, 4),
        "empty_share": round(frequencies[b""] / count, 4),
        "mean_length": round(len(words) / count, 2),
        "words_used": len(vocabulary),
        "lengths": {str(n): int(times) for n, times in enumerate(lengths) if times},
    }


def check_sanity(
    references: Mapping[ImageId, Sequence[str]],
    hypotheses: Mapping[ImageId, str],
    scores: Mapping[str, Any],
    *,
    scorer: Scorer,
    human: Callable[[], dict[str, float]],
    training: TrainingSet | None = None,
) -> dict[str, Any]:
    """Baselines' scores (`rows`), shares (`figures`), `missing` ones with reasons, `warnings`.

    `scorer` scores captions of the same images, `human` leaves one reference out.
    """
    known = training or TrainingSet()
    rows: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    captions = [caption for of_image in known.captions for caption in of_image]
    images = list(hypotheses)

    def nearest() -> dict[ImageId, str]:
        if known.features is None or known.training_features is None:
            raise DataError("nearest neighbours need one feature vector of each image")
        features = known.features, known.training_features
        return baselines.nearest_captions(images, *features, known.captions)

    for name, make in {
        "human": human,
        "shuffled images": lambda: scorer(baselines.shuffled_captions(hypotheses)),
        "constant caption": lambda: scorer(baselines.constant_captions(images, captions)),
        "nearest neighbour": lambda: scorer(nearest()),
    }.items():
        try:
            rows[name] = make()
        except DataError as error:
            missing[name] = str(error)
    figures = _figures(references, hypotheses, known, captions)
    warnings = _warnings_of_rows(scores, rows)
    warnings += _warnings_of_captions(scores["captions"], figures)
    return {"rows": rows, "figures": figures, "missing": missing, "warnings": warnings}


def _figures(
    references: Mapping[ImageId, Sequence[str]],
    hypotheses: Mapping[ImageId, str],
    known: TrainingSet,
    training: Sequence[str],
) -> dict[str, Any]:
    look = describe_captions(list(hypotheses.values()))
    people = describe_captions([c for image in hypotheses for c in references[image]])
    figures: dict[str, Any] = {
        "reference_mean_length": people["mean_length"],
        "reference_lengths": people["lengths"],
        "reference_words": people["words_used"],
    }
    if known.vocabulary:
        figures["vocabulary_used_share"] = round(look["words_used"] / known.vocabulary, 4)
    if training:
        share = baselines.copied_share(hypotheses.values(), training)
        figures["copied_share"] = round(share, 4)
    if known.leakage is not None:
        figures["leaked_files"] = len(known.leakage.same_file)
        figures["leaked_looks"] = len(known.leakage.same_look)
        figures["leaked_pairs"] = [*known.leakage.same_file, *known.leakage.same_look][:20]
    return figures


def _warnings_of_rows(
    scores: Mapping[str, Any], rows: Mapping[str, Mapping[str, float]]
) -> list[str]:
    own = scores.get(METRIC)
    if own is None:
        return []
    found = []
    values = {name: row[METRIC] for name, row in rows.items() if METRIC in row}
    shuffled = values.get("shuffled images", 0.0)
    if shuffled > 0.7 * own:
        found.append(
            f"the captions hardly depend on the image: {METRIC} is {own:.1f}, and "
            f"{shuffled:.1f} when each image gets another one's caption"
        )
    for name in ("constant caption", "nearest neighbour"):
        if values.get(name, -1.0) >= own:
            found.append(f"{METRIC} {own:.1f} does not beat the {name}'s {values[name]:.1f}")
    if "human" in values and own > 1.5 * values["human"] > 0:
        found.append(
            f"{METRIC} {own:.1f} is far above a human's {values['human']:.1f}: are test images "
            "or their captions in the training set?"
        )
    return found


def _warnings_of_captions(look: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    people, many = figures["reference_mean_length"], look["captions"] >= 10
    copied = figures.get("copied_share", 0)
    checks = {
        f"{look['commonest_share']:.0%} of the images get the caption {look['commonest']!r}": (
            many and look["commonest_share"] > 0.1
        ),
        f"only {look['distinct_share']:.0%} of the captions are different": (
            many and look["distinct_share"] < 0.2
        ),
        f"{look['empty_share']:.1%} of the captions are empty": look["empty_share"],
        f"captions have {look['mean_length']:.1f} words on average, the references {people:.1f}": (
            people and not 0.8 <= look["mean_length"] / people <= 1.25
        ),
        f"{copied:.0%} of the captions occur word for word in the training set": copied > 0.5,
        f"{figures.get('leaked_files')} images of the split are in the training set too, and "
        f"{figures.get('leaked_looks')} more look the same as one there": (
            figures.get("leaked_files") or figures.get("leaked_looks")
        ),
    }
    return [warning for warning, holds in checks.items() if holds]
