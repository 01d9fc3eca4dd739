"""What the tests of the fused recurrent layers share: gradients, tolerances, packed layouts."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

Arguments = dict[str, Tensor]


def results(outputs: tuple[Tensor, ...], given_arguments: Arguments) -> list[Tensor]:
    """Outputs and the gradients of a fixed weighting of all of them."""
    generator = torch.Generator().manual_seed(1)
    weighted = [
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in outputs
    ]
    leaves = [x for x in given_arguments.values() if x.requires_grad]
    return [*outputs, *torch.autograd.grad(torch.stack(weighted).sum(), leaves)]


def assert_same(mine: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Equal to `tolerance` of the largest value of each tensor, or of 1."""
    for found, expected in zip(mine, theirs, strict=True):
        wide = expected.double()
        error = (found.double() - wide).abs().max()
        assert error <= tolerance * wide.abs().max().clamp(min=1)


def layouts() -> st.SearchStrategy[list[int]]:
    """Batch sizes: up to 9 sequences of up to 12 steps."""
    lengths = st.lists(st.integers(1, 12), min_size=1, max_size=9)
    return lengths.map(lambda found: [sum(x > t for x in found) for t in range(max(found))])
