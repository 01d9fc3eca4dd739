"""Attention of packed tokens: equal to a loop over sequences, blind to other images, exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from host_reads import no_host_reads
from torch import Tensor

from captioner.data.packed import TokenStore
from captioner.models.attention import AdditiveAttention, MultiHeadAttention
from captioner.models.attention_reference import Attention, attend
from captioner.models.token_groups import group_by_image, group_packed

CAPTIONS = [[5, 6, 7], [8], [4, 5, 6, 7, 8], [9, 4], [6], [4]]
IMAGE_OF = torch.tensor([2, 0, 0, 1, 0, 2])  # of each caption
IMAGES, R, F, D, A = 4, 5, 6, 7, 8  # the last image has no caption


def multi_head(rate: float = 0.0) -> MultiHeadAttention:
    torch.manual_seed(0)
    sizes = {"query_dim": D, "region_dim": F, "dim": A, "heads": 4, "sentinel_dim": F}
    return MultiHeadAttention(**sizes, rate=rate).double()


def additive(rate: float = 0.0) -> AdditiveAttention:
    torch.manual_seed(0)
    sizes = {"query_dim": D, "region_dim": F, "dim": A, "sentinel_dim": F}
    return AdditiveAttention(**sizes, rate=rate).double()


KINDS: list[Callable[..., Attention]] = [multi_head, additive]


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries [N, D], regions [I, R, F], sentinels [N, F], batch_sizes [T] and image_rows [B]."""
    tokens, order = TokenStore(CAPTIONS, bos=1, eos=2).pack(torch.arange(len(CAPTIONS)))
    generator = torch.Generator().manual_seed(1)
    shapes = [(len(tokens.inputs), D), (IMAGES, R, F), (len(tokens.inputs), F)]
    drawn = [torch.randn(x, generator=generator, dtype=torch.float64) for x in shapes]
    return drawn[0], drawn[1], drawn[2], tokens.batch_sizes, IMAGE_OF[order]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("with_sentinel", [False, True])
def test_packed_attention_is_that_of_a_loop_over_sequences(
    make: Callable[..., Attention], with_sentinel: bool
) -> None:
    attention = make()
    queries, regions, sentinels, batch_sizes, image_rows = batch()
    own = sentinels if with_sentinel else None
    groups = group_packed(batch_sizes, image_rows, tokens=len(queries), images=IMAGES)
    memory = attention.memory(regions)
    expected, maps = attend(attention, queries, regions, batch_sizes, image_rows, own)
    found = attention(queries, memory, groups, own)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = attention.weights(queries, memory, groups, own)
    torch.testing.assert_close(weights, maps, rtol=1e-12, atol=1e-12)
    assert weights.shape == (len(queries), R + with_sentinel)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(queries)).double())


@pytest.mark.parametrize("make", KINDS)
def test_a_token_sees_no_other_images_regions(make: Callable[..., Attention]) -> None:
    attention = make()
    queries, regions, _, batch_sizes, image_rows = batch()
    groups = group_packed(batch_sizes, image_rows, tokens=len(queries), images=IMAGES)
    before = attention(queries, attention.memory(regions), groups)
    others = regions.clone()
    others[[0, 1, 3]] = regions[[1, 3, 0]] + 1
    after = attention(queries, attention.memory(others), groups)
    token_images = image_rows[[b for size in batch_sizes.tolist() for b in range(size)]]
    same = (before == after).all(1)
    assert torch.equal(same, token_images == 2)


@pytest.mark.parametrize("make", KINDS)
def test_the_static_shape_form_is_the_ordinary_one(make: Callable[..., Attention]) -> None:
    """Six captions of three images, two or three each: the form has slots for three of each."""
    attention = make()
    queries, regions, _, batch_sizes, image_rows = batch()
    expected = attention(
        queries,
        attention.memory(regions[:3]),
        group_packed(batch_sizes, image_rows, tokens=len(queries), images=3),
    )
    count = len(queries)
    padded = torch.cat([queries, torch.full((7, D), 9.0).double()])
    sizes = torch.cat([batch_sizes, torch.zeros(2, dtype=torch.int64)])
    rows = torch.cat([image_rows, torch.tensor([0, 1, 2])])  # of sequences without a token
    with no_host_reads():
        groups = group_packed(sizes, rows, tokens=len(padded), images=3, capacity=True)
        found = attention(padded, attention.memory(regions[:3]), groups)
    torch.testing.assert_close(found[:count], expected, rtol=1e-12, atol=1e-12)
    assert not found[count:].any()


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("with_sentinel", [False, True])
def test_gradients_are_those_of_finite_differences(
    make: Callable[..., Attention], with_sentinel: bool
) -> None:
    attention = make()
    queries, regions, sentinels, batch_sizes, image_rows = batch()
    groups = group_packed(batch_sizes, image_rows, tokens=len(queries), images=IMAGES)
    names = [name for name, _ in attention.named_parameters()]

    def contexts(queries: Tensor, regions: Tensor, *rest: Tensor) -> Tensor:
        own, weights = (rest[0], rest[1:]) if with_sentinel else (None, rest)
        held = dict(zip(names, weights, strict=True))
        given = (queries, regions, own)
        return torch.func.functional_call(_Whole(attention, groups), _under(held), given)

    given = [queries, regions, *([sentinels] if with_sentinel else [])]
    leaves = [x.detach().clone().requires_grad_() for x in (*given, *attention.parameters())]
    assert torch.autograd.gradcheck(contexts, leaves, fast_mode=True)


class _Whole(torch.nn.Module):
    """From regions to contexts, as one call with replaceable weights."""

    def __init__(self, attention: Attention, groups: object) -> None:
        super().__init__()
        self.attention, self.groups = attention, groups

    def forward(self, queries: Tensor, regions: Tensor, sentinels: Tensor | None) -> Tensor:
        attention = self.attention
        return attention(queries, attention.memory(regions), self.groups, sentinels)


def _under(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"attention.{name}": value for name, value in named.items()}


@pytest.mark.parametrize("make", KINDS)
def test_dropout_of_the_weights_keeps_their_mean(make: Callable[..., Attention]) -> None:
    attention = make(rate=0.3)
    queries, regions, _, batch_sizes, image_rows = batch()
    groups = group_packed(batch_sizes, image_rows, tokens=len(queries), images=IMAGES)
    memory = attention.memory(regions)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = [attention(queries, memory, groups) for _ in range(2000)]
        mean = torch.stack(drawn).mean(0)
        exact = attention.eval()(queries, memory, groups)
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.1)
    assert (mean - exact).abs().mean() < 0.2 * (drawn[0] - exact).abs().mean()


def test_groups_put_every_token_into_a_slot_of_its_image() -> None:
    images = torch.tensor([2, 0, 2, 2, 0, 3])
    groups = group_by_image(images, images=5)
    assert (groups.size, groups.slots.tolist()) == (3, [6, 0, 7, 8, 1, 9])
    rows = torch.arange(12.0).view(6, 2)
    slots = groups.scatter(rows)
    assert slots.shape == (5, 3, 2)
    assert torch.equal(slots[2], rows[[0, 2, 3]]) and not slots[1].any() and not slots[0, 2].any()
    assert torch.equal(groups.gather(slots), rows)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide dim = 8, got 3"):
        MultiHeadAttention(query_dim=2, region_dim=2, dim=8, heads=3)
