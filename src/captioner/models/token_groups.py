"""Packed tokens grouped by the image that they describe, so that attention is one batched product.

Letters: I images, B sequences, T longest length, N packed tokens, Q slots for an image's tokens, D
any width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.ops.models import index_select, placed
from captioner.ops.packing import packed_places


@dataclass(frozen=True)
class TokenGroups:
    """Which of the slots [I, Q] each token has; an image's tokens fill its first slots.

    slots [N] int64 number them image by image; padding rows, for which `filled` [N] is False, have
    the one slot behind all others.
    """

    slots: Tensor
    images: int
    size: int
    filled: Tensor | None = None

    @property
    def token_images(self) -> Tensor:
        """The image of each token, [N]; padding rows have some image."""
        return (self.slots // self.size).clamp(max=self.images - 1)

    def scatter(self, rows: Tensor) -> Tensor:
        """Rows [N, D] into their slots [I, Q, D]; empty slots are 0."""
        count, padding = self.images * self.size, int(self.filled is not None)
        slots = placed(rows, self.slots, count + padding)
        return slots[:count].view(self.images, self.size, -1)

    def gather(self, slots: Tensor) -> Tensor:
        """The slots [I, Q, ...] of each token, [N, ...]; padding rows are 0."""
        flat = slots.flatten(0, 1)
        if self.filled is None:
            return index_select(flat, 0, self.slots)
        found = index_select(flat, 0, self.slots.clamp(max=len(flat) - 1))
        filled = self.filled.view(-1, *[1] * (found.dim() - 1))
        return torch.where(filled, found, 0.0)


def group_packed(
    batch_sizes: Tensor,  # [T] on the CPU; with capacity on the device
    image_rows: Tensor,  # [B] the image of each sequence
    *,
    tokens: int,
    images: int,
    capacity: bool = False,
) -> TokenGroups:
    """The groups of `tokens` packed rows.

    With `capacity` nothing is read on the host: each image then has slots for T tokens of B / I
    sequences (rounded up), and must not have more sequences.
    """
    _, sequence, filled = packed_places(batch_sizes, tokens)
    token_images = image_rows.index_select(0, sequence.to(image_rows.device))
    if not capacity:
        return group_by_image(token_images, images=images)
    size = min(-(-len(image_rows) // images) * len(batch_sizes), tokens)
    token_images = torch.where(filled, token_images, images)
    slots, _ = _places(token_images, images)
    slots = torch.where(filled, token_images * size + slots, images * size)
    return TokenGroups(slots, images, size, filled)


def group_by_image(token_images: Tensor, *, images: int) -> TokenGroups:
    """The groups of tokens whose images are given, [N]; Q is the most that an image has."""
    places, counts = _places(token_images, images)
    size = max(int(counts.max()), 1)
    return TokenGroups(token_images * size + places, images, size)


def _places(token_images: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Each token's number among those of its image, [N], and the tokens of each image, [I]."""
    ordered, order = token_images.sort(stable=True)
    numbers = torch.arange(images + 1, device=ordered.device)
    starts = torch.searchsorted(ordered, numbers)  # [I + 1]
    within = torch.arange(len(ordered), device=ordered.device) - starts.index_select(0, ordered)
    return torch.empty_like(within).index_copy(0, order, within), starts.diff()
