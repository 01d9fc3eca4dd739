"""The scores of additive attention: values, gradients, threads, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captioner.ops import additive_reference, additive_scores
from captioner.ops.extension import ABSENT

compiled = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
BACKENDS = ["reference", pytest.param("fused", marks=compiled)]
# Tokens, images, regions and units: around a vector's width and a cache line, and more images than
# tokens.
SHAPES = [(1, 1, 1, 1), (7, 3, 5, 4), (30, 2, 7, 33), (5, 9, 81, 16), (2, 4, 3, 65), (40, 1, 6, 7)]


def draw(
    tokens: int, images: int, regions: int, units: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, the images of the tokens, in no order, and the weight."""
    generator = torch.Generator().manual_seed(tokens + 7 * regions + units)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    numbers = torch.randint(images, (tokens,), generator=generator)
    return normal(tokens, units), normal(images, regions, units), numbers, normal(units)


def by_hand(queries: Tensor, keys: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """The definition."""
    return (queries.unsqueeze(1) + keys[images]).tanh() @ weight


def with_gradients(scores: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Scores, and the gradients of their sum, each times another number."""
    direction = torch.linspace(-1, 2, scores.numel(), dtype=torch.float64).view_as(scores)
    total = (scores * direction.to(scores.dtype)).sum()
    return [scores.detach(), *torch.autograd.grad(total, leaves)]


def check(shape: tuple[int, ...], backend: str, dtype: torch.dtype, tolerance: float) -> None:
    queries, keys, images, weight = draw(*shape, dtype=dtype)
    leaves = [queries, keys, weight]
    found = with_gradients(additive_scores(queries, keys, images, weight, backend=backend), leaves)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    expected = with_gradients(by_hand(wide[0], wide[1], images, wide[2]), wide)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        scale = float(other.abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 5, 4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_and_gradients_are_the_definitions(shape: tuple[int, ...], backend: str) -> None:
    check(shape, backend, torch.float64, 1e-12)
    check(shape, backend, torch.float32, 3e-6)


@compiled
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(1, 9), st.integers(0, 20), st.integers(1, 70))
def test_any_shape_gives_the_definitions_values(
    tokens: int, images: int, regions: int, units: int
) -> None:
    check((tokens, images, regions, units), "fused", torch.float64, 1e-12)


@pytest.mark.parametrize("values", [1, 40])
@pytest.mark.parametrize("kept", [0, 2**27])
def test_the_reference_in_pieces_is_the_definition(
    values: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(additive_reference, "CPU_VALUES", values)
    monkeypatch.setattr(additive_reference, "KEPT_VALUES", kept)
    check((7, 3, 5, 4), "reference", torch.float64, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_float32_is_exact_to_rounding(scale: float, backend: str) -> None:
    """Also where the hidden layer saturates, or queries and keys cancel."""
    generator = torch.Generator().manual_seed(4)
    keys = scale * torch.randn(2, 50, 64, generator=generator).clamp(-1.3, 1.3)
    drawn = scale * torch.randn(4, 64, generator=generator).clamp(-1.3, 1.3)
    queries = torch.cat([drawn, -keys[1, :3]])
    weight, images = torch.randn(64, generator=generator), torch.tensor([0, 1, 0, 1, 1, 1, 1])
    exact = by_hand(queries.double(), keys.double(), images, weight.double())
    found = additive_scores(queries, keys, images, weight, backend=backend)
    assert (found - exact).abs().max() / weight.abs().sum() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 40.0), (torch.float64, 300.0)])
def test_beyond_the_limits_numbers_count_as_these(
    dtype: torch.dtype, limit: float, backend: str
) -> None:
    """Without an overflow; what is not a number stays with its token, in scores and gradients."""
    far = torch.tensor([-torch.inf, -1e4, -limit, 0.5, limit, 1e4, torch.inf], dtype=dtype)
    queries = far.unsqueeze(1).expand(7, 7).contiguous()
    keys, images = far.view(1, 7, 1).expand(2, 7, 7).contiguous(), torch.zeros(7, dtype=torch.int64)
    weight = torch.linspace(-1, 2, 7, dtype=dtype)

    def run(queries: Tensor, keys: Tensor) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in (queries, keys, weight)]
        return with_gradients(
            additive_scores(leaves[0], leaves[1], images, leaves[2], backend=backend), leaves
        )

    found, within = run(queries, keys), run(queries.clamp(-limit, limit), keys.clamp(-limit, limit))
    for one, other in zip(found, within, strict=True):
        assert torch.equal(one, other) and one.isfinite().all()
    exact = by_hand(
        *(x.clamp(-limit, limit).double() for x in (queries, keys)), images, weight.double()
    )
    torch.testing.assert_close(found[0].double(), exact, rtol=0, atol=2e-6)
    queries[2, 3] = torch.nan
    scores, of_queries, *_ = run(queries, keys)
    others = [0, 1, 3, 4, 5, 6]
    assert scores[2].isnan().all() and torch.equal(scores[others], found[0][others])
    assert of_queries[2].isnan().any() and torch.equal(of_queries[others], found[1][others])


@compiled
def test_a_score_depends_on_its_own_token_and_image_alone() -> None:
    """Bit for bit: whatever the other images, and in whatever order the tokens come."""
    queries, keys, images, weight = (x.detach() for x in draw(60, 5, 9, 21, torch.float32))
    found = additive_scores(queries, keys, images, weight)
    others = keys.clone()
    others[[0, 1, 2, 4]] = keys[[1, 4, 0, 2]] + 1
    same = (additive_scores(queries, others, images, weight) == found).all(1)
    assert torch.equal(same, images == 3) and same.any()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = additive_scores(queries[order], keys, images[order], weight)
    assert torch.equal(shuffled, found[order])
    assert torch.equal(additive_scores(queries[7:8], keys, images[7:8], weight), found[7:8])


@compiled
def test_threads_strides_and_repeated_calls_change_no_bit() -> None:
    """With work for more threads than there are panels of units."""
    queries, keys, images, weight = draw(120, 4, 50, 40, torch.float32)

    def run(queries: Tensor, keys: Tensor, images: Tensor, weight: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (queries, keys, weight)]
        return with_gradients(additive_scores(leaves[0], leaves[1], images, leaves[2]), leaves)

    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        found.append(run(queries, keys, images, weight))
    torch.set_num_threads(before)
    apart = [x.detach().repeat_interleave(2, dim=-1)[..., ::2] for x in (queries, keys, weight)]
    found.append(run(apart[0], apart[1], images.repeat_interleave(3)[::3], apart[2]))
    for first, *rest in zip(*found, strict=True):
        assert all(torch.equal(first, other) for other in rest)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    queries, keys, images, weight = draw(6, 3, 4, 5)
    assert torch.autograd.gradcheck(
        lambda q, k, w: additive_scores(q, k, images, w, backend=backend), (queries, keys, weight)
    )


@compiled
def test_opcheck() -> None:
    operator = torch.ops.captioner.additive_scores.default
    torch.library.opcheck(operator, draw(6, 3, 4, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused(backend: str) -> None:
    queries, keys, images, weight = draw(4, 2, 3, 5)
    scores = additive_scores(queries, keys, images, weight, backend=backend)
    (gradient,) = torch.autograd.grad(scores.square().sum(), queries, create_graph=True)
    message = "no second derivative|marked with @once_differentiable"
    with pytest.raises((NotImplementedError, RuntimeError), match=message):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_are_computed_in_float32(backend: str) -> None:
    queries, keys, images, weight = draw(9, 2, 5, 600)
    halves = [x.detach().bfloat16() for x in (queries, keys, weight)]
    found = additive_scores(halves[0], halves[1], images, halves[2], backend=backend)
    exact = by_hand(halves[0].double(), halves[1].double(), images, halves[2].double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=5e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = additive_scores(halves[0], halves[1], images, halves[2].float(), backend=backend)
    assert torch.equal(mixed, found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queries": torch.zeros(4)}, r"queries must be \[N, A\] and keys \[I, R, A\], got \[4\]"),
        (
            {"keys": torch.zeros(2, 5, 3)},
            r"keys must be \[I, R, A\] = \[2, 5, 4\], got \[2, 5, 3\]",
        ),
        ({"keys": torch.zeros(2, 5, 4).double()}, "keys must be torch.float32 as queries is"),
        ({"weight": torch.zeros(3)}, r"weight must be \[A\] = \[4\], got \[3\]"),
        ({"images": torch.zeros(3)}, r"images must be \[N\] int64, got \[3\] of torch.float32"),
        ({"images": torch.zeros(2).long()}, r"images must be \[N\] = \[3\], got \[2\]"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Tensor], message: str) -> None:
    arguments = {
        "queries": torch.zeros(3, 4),
        "keys": torch.zeros(2, 5, 4),
        "images": torch.zeros(3, dtype=torch.int64),
        "weight": torch.zeros(4),
    } | changed
    with pytest.raises(ValueError, match=message):
        additive_scores(**arguments)


@compiled
@pytest.mark.parametrize("image", [-1, 2])
def test_an_image_that_is_not_there_is_named(image: int) -> None:
    tensors, images = (torch.zeros(3, 4), torch.zeros(2, 5, 4)), torch.tensor([0, image, 1])
    with pytest.raises(RuntimeError, match=f"from 0 to 1, got {image} for token 1"):
        additive_scores(*tensors, images, torch.zeros(4))
