"""Cross-entropy over packed tokens: only tokens that exist are counted.

Shapes: N packed tokens, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def packed_cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Summed loss in nats, a float32 (or float64) scalar; logits [N, V], targets [N].

    `label_smoothing` moves that share of the target's probability evenly over the vocabulary
    (Szegedy et al. 2016).
    """
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
