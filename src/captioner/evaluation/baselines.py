"""Baselines: captions whose scores a captioner should exceed, and the share that it copies."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from captioner.data.tokenize import coco_tokens
from captioner.errors import DataError
from captioner.evaluation.coco_format import ImageId

Features = NDArray[np.float32]
_ROWS = 256  # images compared with the training set at a time


def constant_captions(
    images: Sequence[ImageId], training_captions: Iterable[str]
) -> dict[ImageId, str]:
    """The same caption for each image: the commonest of the training set's (the first of equals).

    DataError without training captions.
    """
    counts = Counter(coco_tokens(caption) for caption in training_captions)
    if not counts:
        raise DataError("a constant caption is taken from the training captions: there are none")
    return dict.fromkeys(images, " ".join(counts.most_common(1)[0][0]))


def shuffled_captions(hypotheses: Mapping[ImageId, str], *, seed: int = 0) -> dict[ImageId, str]:
    """Each image gets the caption of another one; a single image keeps its own.

    A captioner without randomness generates these for shuffled images; one that uses its images
    scores far lower with them.
    """
    order = np.random.default_rng(seed).permutation(len(hypotheses))
    images = list(hypotheses)
    # Along one cycle through all images, so that none keeps its own.
    pairs = zip(order, np.roll(order, 1), strict=True)
    return {images[here]: hypotheses[images[there]] for here, there in pairs}


def nearest_captions(
    images: Sequence[ImageId],
    features: Features,
    training_features: Features,
    training_captions: Sequence[Sequence[str]],
) -> dict[ImageId, str]:
    """The most typical caption of the most similar training image.

    Features [I, F] and [N, F] of the images, compared by cosine after each dimension is
    standardised over the training set. DataError when features and images differ in number.
    """
    if len(features) != len(images) or len(training_features) != len(training_captions):
        raise DataError(
            f"nearest neighbours need features of each image: got {len(features)} for "
            f"{len(images)} and {len(training_features)} for {len(training_captions)} of training"
        )
    mean, deviation = training_features.mean(axis=0), training_features.std(axis=0) + 1e-6
    known = _unit((training_features - mean) / deviation)
    found: dict[ImageId, str] = {}
    for at in range(0, len(features), _ROWS):
        similarity = _unit((features[at : at + _ROWS] - mean) / deviation) @ known.T
        for image, row in zip(images[at : at + _ROWS], similarity.argmax(axis=1), strict=True):
            found[image] = most_typical(training_captions[row])
    return found


def most_typical(captions: Sequence[str]) -> str:
    """The caption that shares most words with the others (the first of equals)."""
    words = [Counter(coco_tokens(caption)) for caption in captions]
    everything = sum(words, Counter())
    shared = [(one & (everything - one)).total() / max(1, one.total()) for one in words]
    return captions[int(np.argmax(shared))]


def copied_share(hypotheses: Iterable[str], training_captions: Iterable[str]) -> float:
    """The share of captions that occur word for word in the training set, 0 to 1."""
    known = {coco_tokens(caption) for caption in training_captions}
    captions = [coco_tokens(caption) for caption in hypotheses]
    return sum(caption in known for caption in captions) / max(1, len(captions))


def _unit(rows: Features) -> Features:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
