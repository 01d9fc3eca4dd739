"""The loss against torch's: values, gradients, compilation, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captioner.ops import linear_cross_entropy
from captioner.ops.extension import ABSENT

compiled = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
BACKENDS = ["torch", pytest.param("fused", marks=compiled)]


def draw(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias and targets; every fifth target is the last word."""
    generator = torch.Generator().manual_seed(tokens + hidden + vocabulary)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[::5] = vocabulary - 1
    return normal(tokens, hidden), normal(vocabulary, hidden), normal(vocabulary), targets


def by_hand(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float
) -> Tensor:
    """The definition: minus the wanted distribution's mean of log-probabilities, summed."""
    log_probs = (hidden @ weight.t() + bias).log_softmax(1)
    wanted = torch.full_like(log_probs, smoothing / len(bias))
    wanted[torch.arange(len(targets)), targets] += 1 - smoothing
    return -(wanted * log_probs).sum()


def check(
    shape: tuple[int, int, int],
    smoothing: float,
    backend: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    *tensors, targets = draw(*shape, dtype)
    loss = linear_cross_entropy(*tensors, targets, label_smoothing=smoothing, backend=backend)
    found = torch.autograd.grad(loss * 0.25, tensors)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    expected = by_hand(*wide, targets, smoothing)  # type: ignore[arg-type]
    wanted = torch.autograd.grad(expected * 0.25, wide)
    assert loss.dtype == dtype and loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


# Words and hidden sizes around a panel's width, more words and units than one block's depth.
SHAPES = [
    (1, 1, 1),
    (2, 3, 4),
    (7, 64, 63),
    (13, 31, 64),
    (50, 33, 65),
    (97, 8, 130),
    (5, 520, 1030),
    (600, 3, 5),
    (49, 130, 515),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_definition_in_float64(
    shape: tuple[int, int, int], smoothing: float, backend: str
) -> None:
    check(shape, smoothing, backend, torch.float64, 1e-10)


@compiled
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_as_exact_as_float32_can_be(shape: tuple[int, int, int]) -> None:
    check(shape, 0.1, "fused", torch.float32, 1e-4)


@compiled
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120), st.integers(1, 80), st.integers(1, 200), st.sampled_from([0.0, 0.05, 0.7])
)
def test_any_shape_gives_torchs_values(
    tokens: int, hidden: int, vocabulary: int, smoothing: float
) -> None:
    check((tokens, hidden, vocabulary), smoothing, "fused", torch.float64, 1e-10)


def test_tokens_count_as_often_as_their_weights_say() -> None:
    """Twice, not at all, and less than not at all."""
    *tensors, targets = draw(4, 5, 7)
    weights = torch.tensor([2.0, 0.0, -1.5, 1.0], dtype=torch.float64)
    found = linear_cross_entropy(*tensors, targets, token_weights=weights)
    hidden, *layer = tensors
    each = [by_hand(hidden[k : k + 1], *layer, targets[k : k + 1], 0.0) for k in range(4)]
    expected = 2 * each[0] - 1.5 * each[2] + each[3]
    torch.testing.assert_close(found, expected)
    pairs = zip(*(torch.autograd.grad(x, tensors) for x in (found, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match=r"token_weights must be \[N\] = \[4\]"):
        linear_cross_entropy(*tensors, targets, token_weights=weights[:3])


@compiled
def test_without_a_gradient_the_loss_is_the_same_bits() -> None:
    *tensors, targets = draw(130, 20, 70, torch.float32)
    loss = linear_cross_entropy(*tensors, targets, backend="fused")
    with torch.no_grad():
        assert linear_cross_entropy(*tensors, targets, backend="fused") == loss


@compiled
def test_no_token_is_no_loss_and_no_gradient() -> None:
    *tensors, targets = draw(0, 4, 6)
    loss = linear_cross_entropy(*tensors, targets, backend="fused")
    loss.backward()
    assert loss == 0
    assert not any(x.grad.any() for x in tensors)  # type: ignore[union-attr]


@compiled
def test_large_and_lost_numbers_are_torchs() -> None:
    """Logits of +-1e4 have no overflow; NaN and infinity in a state make the loss NaN."""
    hidden = torch.tensor([[1e4], [-1e4], [0.0]])
    weight, bias = torch.tensor([[1.0], [-1.0], [0.5]]), torch.zeros(3)
    targets = torch.tensor([0, 0, 2])
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    found = linear_cross_entropy(hidden, weight, bias, targets, backend="fused")
    torch.testing.assert_close(found, expected)
    for bad in (float("nan"), float("inf")):
        hidden[1, 0] = bad
        assert linear_cross_entropy(hidden, weight, bias, targets, backend="fused").isnan()


@compiled
def test_strided_arguments_and_repeated_calls_give_the_same_bits() -> None:
    hidden, weight, bias, targets = draw(90, 36, 77, torch.float32)

    def run(*tensors: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors[:3]]
        loss = linear_cross_entropy(*leaves, tensors[3], backend="fused")
        return [loss, *torch.autograd.grad(loss, leaves)]

    plain = run(hidden, weight, bias, targets)
    again = run(hidden, weight, bias, targets)
    apart = [x.detach().repeat_interleave(2, dim=-1)[..., ::2] for x in (hidden, weight, bias)]
    strided = run(*apart, targets.repeat_interleave(3)[::3])
    for one, two, three in zip(plain, again, strided, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


@compiled
def test_gradcheck_and_opcheck() -> None:
    *tensors, targets = draw(6, 5, 9)
    for smoothing in (0.0, 0.2):
        assert torch.autograd.gradcheck(
            lambda *x, s=smoothing: linear_cross_entropy(
                *x, targets, label_smoothing=s, backend="fused"
            ),
            tensors,
        )
    operator = torch.ops.captioner.linear_cross_entropy.default
    torch.library.opcheck(operator, (*tensors, targets, 0.1, True))
    torch.library.opcheck(operator, (*[x.detach() for x in tensors], targets, 0.1, False))


@compiled
def test_a_compiled_function_gives_the_same() -> None:
    *tensors, targets = draw(20, 8, 30)

    def function(*arguments: Tensor) -> Tensor:
        return linear_cross_entropy(*arguments, backend="fused") / 20

    run = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(*tensors, targets), function(*tensors, targets))


@compiled
def test_a_second_derivative_is_refused() -> None:
    *tensors, targets = draw(4, 3, 5)
    loss = linear_cross_entropy(*tensors, targets, backend="fused")
    (gradient,) = torch.autograd.grad(loss, tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_half_types_are_summed_in_float32() -> None:
    hidden, weight, bias, targets = draw(4000, 4, 3)
    halves = [x.detach().bfloat16() for x in (hidden, weight, bias)]
    loss = linear_cross_entropy(*halves, targets)
    expected = by_hand(*[x.double() for x in halves], targets, 0.0)  # type: ignore[arg-type]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.zeros(5, 3)}, r"weight must be \[V, H\] = \[5, 4\], got \[5, 3\]"),
        ({"bias": torch.zeros(4)}, r"bias must be \[V\] = \[5\], got \[4\]"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, r"targets must be \[N\] = \[3\]"),
        ({"targets": torch.zeros(3)}, "targets must be of int64, got torch.float32"),
        ({"hidden": torch.zeros(3)}, r"hidden must be \[N, H\]"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Tensor], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(3, 4),
        "weight": torch.zeros(5, 4),
        "bias": torch.zeros(5),
        "targets": torch.zeros(3, dtype=torch.int64),
    } | changed
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


@compiled
@pytest.mark.parametrize("word", [-1, 5])
def test_a_target_outside_of_the_vocabulary_is_named(word: int) -> None:
    targets = torch.tensor([0, word, 1])
    with pytest.raises(RuntimeError, match=f"from 0 to 4 or -100, got {word} for token 1"):
        linear_cross_entropy(
            torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5), targets, backend="fused"
        )
