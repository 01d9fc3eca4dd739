"""Several captioners that choose each word together.

Shapes: B sequences, V vocabulary, M members.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captioner.models.base_captioner import BaseCaptioner


class Ensemble(nn.Module):
    """The mean of the members' probabilities at every step; each has its own features and state.

    ValueError without a member, or where vocabularies differ in size.
    """

    def __init__(self, members: Sequence[BaseCaptioner]) -> None:
        super().__init__()
        sizes = [one.vocab_size for one in members]
        if len(set(sizes)) != 1:
            raise ValueError(f"an ensemble needs members of one vocabulary, got sizes {sizes}")
        self.members = nn.ModuleList(members)

    def start(self, images: Sequence[Tensor]) -> tuple[Any, ...]:
        """Each member's state after its own form of the same images."""
        pairs = zip(self.members, images, strict=True)
        return tuple(member.start(one) for member, one in pairs)  # type: ignore[operator]

    def step(self, token_ids: Tensor, state: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """One step of generation: tokens [B] -> log of the mean probabilities [B, V], states."""
        pairs = zip(self.members, state, strict=True)
        found = [member.step(token_ids, own) for member, own in pairs]  # type: ignore[operator]
        log_probs = torch.stack([log_probs for log_probs, _ in found])  # [M, B, V]
        mean = log_probs.logsumexp(0) - math.log(len(found))
        return mean, tuple(own for _, own in found)

    @contextmanager
    def tabulated(self) -> Iterator[None]:
        """A context for generation: see `LanguageModel.tabulated`."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.tabulated())  # type: ignore[operator]
            yield
