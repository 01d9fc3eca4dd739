"""Activation and temporal activation regularisation (Merity et al. 2017, "Revisiting Activation
Regularization for Language RNNs") of packed hidden states.

Shapes: T longest length, N packed tokens, H hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.ops.packing import packed_places


@dataclass(frozen=True)
class ActivationRegularisation:
    """What the last layer's h_t add to the loss, each a mean over tokens and units: `activation`
    (AR, the papers' alpha) times h_t^2 after dropout, `temporal` (TAR, beta) times the square of
    h_t - h_{t-1} before it, within the sequences of a batch."""

    activation: float = 0.0
    temporal: float = 0.0

    def __bool__(self) -> bool:
        return self.activation > 0 or self.temporal > 0

    def penalty(
        self,
        hidden: Tensor,  # [N, H]
        dropped: Tensor,  # [N, H] with dropout
        batch_sizes: Tensor,  # [T]
    ) -> Tensor:
        """N times both means, as a loss that is summed over N tokens takes them, []."""
        total = self.activation * dropped.square().mean(-1).sum()
        if self.temporal:
            step, _, filled = packed_places(batch_sizes, len(hidden))
            follows = filled & (step > 0)
            row = torch.arange(len(hidden), device=batch_sizes.device)
            earlier = row - batch_sizes.index_select(0, (step - 1).clamp(min=0))
            earlier = torch.where(follows, earlier, row).to(hidden.device)
            change = (hidden - hidden.index_select(0, earlier)).square().mean(-1).sum()
            tokens, pairs = (x.sum().to(hidden.device, hidden.dtype) for x in (filled, follows))
            total = total + self.temporal * tokens / pairs.clamp(min=1) * change
        return total


def with_gradient_of(loss: Tensor, penalty: Tensor) -> Tensor:
    """`loss` to the last bit, whose gradient is that of loss + penalty: what is reported is the
    loss."""
    return loss + (penalty - penalty.detach())
