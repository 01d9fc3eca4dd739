"""From hypotheses and references to scores and pages. Knows nothing of models."""

from collections.abc import Mapping, Sequence
from typing import Any

from captioner.evaluation.coco_format import ImageId


def score(
    references: Mapping[ImageId, Sequence[str]],
    hypotheses: Mapping[ImageId, str],
    *,
    card: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score captions by image against references: `captioner.evaluation.scores.score`.

    `options` are the fields of `captioner.evaluation.metrics.ScoringOptions`.
    """
    # Imported late: callers that need one metric do not load them all.
    from captioner.evaluation import metrics, scores

    return scores.score(references, hypotheses, metrics.ScoringOptions(**options), card=card)


__all__ = ["score"]
