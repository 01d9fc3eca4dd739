"""From hypotheses and references to scores and pages. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captioner.evaluation.coco_format import ImageId


def score(
    references: Mapping[ImageId, Sequence[str]], hypotheses: Mapping[ImageId, str], **options: Any
) -> dict[str, Any]:
    """Score captions by image against references: `captioner.evaluation.scores.score`."""
    # Imported late: whoever needs one metric alone does not load them all.
    from captioner.evaluation import scores

    return scores.score(references, hypotheses, **options)


__all__ = ["score"]
