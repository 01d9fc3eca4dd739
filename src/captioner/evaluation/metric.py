"""What a metric leaves behind: enough of each image to score any sample of them.

Legend: I images, K statistics an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from captioner.evaluation.ngrams import Floats


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
