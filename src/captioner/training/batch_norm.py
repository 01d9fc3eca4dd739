"""BatchNorm over the images of all processes, on any device.

torch.nn.SyncBatchNorm is for GPUs only; this computes the same from sums that are added up over
the ranks, with autograd's own gradient. Shapes: I images, C channels, S image height and width.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """A tensor summed over the ranks; its gradient is every rank's, summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = own.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of all ranks' images together.

    Collective: a rank without images calls it with an empty input, [0, C, 1, 1].
    """

    group: Any = None  # the processes

    def forward(self, input: Tensor) -> Tensor:
        """[I, C, S, S] -> the same shape, normalised."""
        if not self.training:
            return super().forward(input)
        wide = input.double()  # E[x^2] - E[x]^2 cancels
        count = input.new_tensor([input.numel() // input.shape[1]], dtype=torch.float64)
        sums = torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count])
        sums = _Sum.apply(sums, self.group)
        mean, square = (sums[:-1] / sums[-1]).chunk(2)
        variance = square - mean.square()
        self._track(mean.detach(), variance.detach(), sums[-1].detach())
        scale = self.weight * (variance + self.eps).rsqrt().to(input.dtype)
        shift = self.bias - scale * mean.to(input.dtype)
        return input * scale[:, None, None] + shift[:, None, None]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, of which the variance is the unbiased one, as torch does."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * count / (count - 1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def share_batch_norms(model: nn.Module, group: Any) -> None:
    """Make every BatchNorm2d of the model a SharedBatchNorm, its weights and statistics kept."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm  # in place: the optimiser holds the weights
            module.group = group


def without_images(model: nn.Module) -> Tensor:
    """Call every SharedBatchNorm that is in training with no images: 0, with gradients 0."""
    total = torch.zeros(())
    for module in model.modules():
        if isinstance(module, SharedBatchNorm) and module.training:
            nothing = module.weight.new_empty(0, module.num_features, 1, 1)
            # With a gradient, for the others wait in the backward too.
            total = total + module(nothing.requires_grad_()).sum()
    return total
