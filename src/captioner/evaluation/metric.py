"""A metric with what is needed of each image to score any sample of them: bootstrap intervals and
two tests of the difference between two runs.

Legend: I images, K statistics an image, R samples.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from captioner.evaluation.ahead import Ahead
from captioner.evaluation.corpus import Floats

SAMPLES = 1000
_CELLS = 1 << 21  # R x I numbers drawn at a time


@dataclass(frozen=True)
class Metric:
    """A metric of a corpus: `per_image` [I], and `statistics` [I, K] that add up over images.

    `combine` turns sums [..., K] of them into scores [...]; so a bootstrap sample is a weighted
    sum. All scores are percentages: 100 times what coco-caption prints.
    """

    name: str
    per_image: Floats
    statistics: Floats
    combine: Callable[[Floats], Floats]

    @property
    def value(self) -> float:
        """The score of the whole corpus."""
        return float(self.combine(self.statistics.sum(axis=0)))


def mean_metric(name: str, per_image: Floats) -> Metric:
    """A metric whose corpus score is the mean over images."""
    statistics = np.stack([per_image, np.ones_like(per_image)], axis=1)
    return Metric(name, per_image, statistics, _mean)


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


@dataclass(frozen=True)
class Difference:
    """Run b less run a: the difference, its 95 % interval, and both tests' p (two-sided).

    `p_bootstrap`: how often resampled images turn the sign (Koehn 2004). `p_randomisation`: how
    often runs with captions swapped at random differ as much (Noreen 1989; Riezler and Maxwell
    2005).
    """

    difference: float
    low: float
    high: float
    p_bootstrap: float
    p_randomisation: float


def intervals(
    metrics: Mapping[str, Metric], *, samples: int = SAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of every metric over images drawn with replacement (Efron 1979).

    All metrics see the same samples. CIDEr's document frequencies stay those of the whole corpus.
    """
    if not metrics:
        return {}
    images = len(next(iter(metrics.values())).per_image)
    drawn: dict[str, list[Floats]] = {name: [] for name in metrics}
    tables = {id(metric.statistics): metric.statistics for metric in metrics.values()}
    for weights in Ahead(_resamples(images, samples, seed), most=1):
        sums = {table: weights @ statistics for table, statistics in tables.items()}
        for name, metric in metrics.items():
            drawn[name].append(metric.combine(sums[id(metric.statistics)]))
    tails = 50 * (1 - 0.95), 50 * (1 + 0.95)
    return {name: _interval(np.concatenate(parts), tails) for name, parts in drawn.items()}


def compare(a: Metric, b: Metric, *, samples: int = SAMPLES, seed: int = 0) -> Difference:
    """The paired difference b - a of two runs on the same images in the same order."""
    observed = b.value - a.value
    parts = [
        b.combine(weights @ b.statistics) - a.combine(weights @ a.statistics)
        for weights in _resamples(len(a.per_image), samples, seed)
    ]
    resampled = np.concatenate(parts)
    turned = min(np.mean(resampled <= 0), np.mean(resampled >= 0))
    low, high = _interval(resampled, (2.5, 97.5))
    randomisation = _randomisation(a, b, samples, seed)
    return Difference(observed, low, high, float(min(1.0, 2 * turned)), randomisation)


def _randomisation(a: Metric, b: Metric, samples: int, seed: int) -> float:
    """The share of random swaps of captions between the runs that differ at least as much."""
    observed = abs(b.value - a.value)
    apart = b.statistics - a.statistics
    totals = a.statistics.sum(axis=0), b.statistics.sum(axis=0)
    generator = np.random.default_rng(seed + 1)
    as_far = 0
    for rows in _parts(len(a.per_image), samples):
        moved = generator.integers(0, 2, (rows, len(apart))).astype(np.float64) @ apart
        differences = np.abs(b.combine(totals[1] - moved) - a.combine(totals[0] + moved))
        as_far += int(np.sum(differences >= observed - 1e-9))
    return (as_far + 1) / (samples + 1)


def _resamples(images: int, samples: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn, [R, I], a few samples at a time."""
    generator = np.random.default_rng(seed)
    for rows in _parts(images, samples):
        drawn = generator.integers(0, images, (rows, images))
        drawn += np.arange(rows)[:, None] * images
        counts = np.bincount(drawn.ravel(), minlength=rows * images)
        yield counts.reshape(rows, images).astype(np.float64)


def _parts(images: int, samples: int) -> Iterator[int]:
    most = max(1, _CELLS // max(1, images))
    for done in range(0, samples, most):
        yield min(most, samples - done)


def _interval(values: Floats, tails: tuple[float, float]) -> tuple[float, float]:
    low, high = np.percentile(values, tails)
    return float(low), float(high)
