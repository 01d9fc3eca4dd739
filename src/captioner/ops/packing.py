"""The packed layout as an index: the step and sequence of each row.

Shapes: N packed rows (a capacity), T steps.
"""

import torch
from torch import Tensor


def packed_places(batch_sizes: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of `tokens` packed rows: its step, its sequence, and whether it is filled, [N].

    Padding rows get step T - 1 and sequence 0. Index arithmetic only.
    """
    ends = batch_sizes.cumsum(0)
    row = torch.arange(tokens, device=batch_sizes.device)
    step = torch.searchsorted(ends, row, right=True)
    filled = step < len(batch_sizes)
    step = step.clamp(max=len(batch_sizes) - 1)
    sequence = row - (ends - batch_sizes).index_select(0, step)
    return step, torch.where(filled, sequence, 0), filled
