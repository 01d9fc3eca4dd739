"""The compiled GRU against torch.nn.GRU: shapes, shared rows, threads, types, refusals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_layers import Arguments, assert_same, layouts, results
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from captioner.ops import gru_packed
from captioner.ops.extension import ABSENT

compiled = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))


def arguments(
    sizes: list[int],
    size: int,
    hidden: int,
    *,
    dtype: torch.dtype = torch.float64,
    state: float = 1,
) -> Arguments:
    """Random arguments of gru_packed, weights scaled as initialised ones are."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (scale * values).to(dtype).requires_grad_()

    return {
        "input": draw(sum(sizes), size),
        "batch_sizes": torch.tensor(sizes),
        "hx": draw(sizes[0], hidden, scale=state),
        "weight_ih": draw(3 * hidden, size, scale=size**-0.5),
        "weight_hh": draw(3 * hidden, hidden, scale=hidden**-0.5),
        "bias_ih": draw(3 * hidden),
        "bias_hh": draw(3 * hidden),
    }


def torch_gru(drawn: Arguments, input_rows: Tensor | None) -> tuple[Tensor, ...]:
    """The same by torch.nn.GRU in float64, its graph leading back to the arguments."""
    wide = {name: x if name == "batch_sizes" else x.double() for name, x in drawn.items()}
    module = nn.GRU(wide["weight_ih"].shape[1], wide["weight_hh"].shape[1]).double()
    rows = wide["input"] if input_rows is None else wide["input"][input_rows]
    weights = {f"{name}_l0": wide[name] for name in list(wide)[3:]}
    call = (PackedSequence(rows, wide["batch_sizes"]), wide["hx"][None])
    output, hy = torch.func.functional_call(module, weights, call)
    return output.data, hy[0]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@compiled
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    sizes=layouts(),
    size=st.integers(1, 40),
    hidden=st.integers(1, 40),
    state=st.sampled_from([0.0, 1.0]),
    rows=st.none() | st.integers(1, 8),
    number=st.integers(1, 4),
)
def test_every_shape_gives_what_torch_gives(
    sizes: list[int], size: int, hidden: int, state: float, rows: int | None, number: int
) -> None:
    """Also where tokens share rows of the input, and with threads that get no sequence."""
    drawn, input_rows = arguments(sizes, size, hidden, state=state), None
    if rows is not None:
        input_rows = torch.arange(sum(sizes)).mul(5).remainder(rows)
        drawn["input"] = drawn["input"].detach().repeat(rows, 1)[:rows].clone().requires_grad_()
    expected = results(torch_gru(drawn, input_rows), drawn)
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        found = results(gru_packed(**drawn, input_rows=input_rows, backend="fused"), drawn)
    finally:
        torch.set_num_threads(before)
    assert_same(found, expected, 1e-10)


@compiled
@pytest.mark.parametrize("hidden", [130, 512])
def test_depths_beyond_one_block_of_the_products(hidden: int) -> None:
    drawn = arguments([20, 19, 3, 1], 600, hidden)
    expected = results(torch_gru(drawn, None), drawn)
    assert_same(results(gru_packed(**drawn, backend="fused"), drawn), expected, 1e-10)


@compiled
def test_float32_stays_near_float64() -> None:
    drawn = arguments([7, 7, 5, 5, 4] + [2] * 10 + [1] * 15, 48, 80, dtype=torch.float32)
    outputs = gru_packed(**drawn, backend="fused")
    assert {x.dtype for x in outputs} == {torch.float32}
    assert_same(results(outputs, drawn), results(torch_gru(drawn, None), drawn), 2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_what_is_not_compiled_is_torchs(dtype: torch.dtype) -> None:
    drawn, rows = arguments([3, 2], 4, 5, dtype=dtype), torch.tensor([0, 4, 1, 1, 2])
    backend = "torch" if dtype == torch.float64 else "auto"
    found = gru_packed(**drawn, input_rows=rows, backend=backend)
    tolerance = 0 if dtype == torch.float64 else 2**-6
    assert_same([*found], [*torch_gru(drawn, rows)], tolerance)


@compiled
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("number", [1, 3])
def test_repeats_have_the_same_bits_for_a_number_of_threads(number: int) -> None:
    drawn = arguments([6, 5, 5, 2, 1], 12, 40, dtype=torch.float32)
    torch.set_num_threads(number)
    first, again = (results(gru_packed(**drawn, backend="fused"), drawn) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@compiled
@pytest.mark.parametrize("sizes", [[4, 3, 1], [5]])
@pytest.mark.parametrize("state", [0.0, 1.0])
def test_nothing_that_was_not_written_is_read_or_returned(sizes: list[int], state: float) -> None:
    drawn = arguments(sizes, 7, 21, state=state)
    torch.use_deterministic_algorithms(True)  # new tensors are full of NaN
    try:
        outputs = torch.ops.captioner.gru_packed(*drawn.values())
        assert all(x.isfinite().all() for x in (*outputs, *results(outputs[:2], drawn)))
    finally:
        torch.use_deterministic_algorithms(False)


@compiled
def test_arguments_of_any_strides() -> None:
    drawn = arguments([3, 2, 2], 6, 8)
    expected = results(gru_packed(**drawn, backend="fused"), drawn)
    strided = {
        name: x.detach().t().contiguous().t().requires_grad_() if x.dim() == 2 else x
        for name, x in drawn.items()
    }
    assert_same(results(gru_packed(**strided, backend="fused"), strided), expected, 1e-12)


@compiled
def test_opcheck() -> None:
    drawn = [*arguments([3, 2, 2], 4, 5).values()]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for rows in (None, torch.tensor([0, 1, 2, 2, 0, 1, 6])):
        torch.library.opcheck(torch.ops.captioner.gru_packed, (*drawn, rows), test_utils=checks)
    with pytest.raises(NotImplementedError, match="gru_packed has no second derivative"):
        torch.autograd.gradgradcheck(torch.ops.captioner.gru_packed, drawn)


WRONG = {
    "input": (torch.zeros(3), r"input must be \[U, E\]"),
    "hx": (torch.zeros(1, 4), r"hx must be \[B, H\] = \[2, 4\], got \[1, 4\]"),
    "weight_ih": (torch.zeros(12, 2), r"weight_ih must be \[3H, E\] = \[12, 3\], got \[12, 2\]"),
    "weight_hh": (torch.zeros(16, 4), r"weight_hh must be \[3H, H\], got \[16, 4\]"),
    "bias_ih": (torch.zeros(4), r"bias_ih must be \[3H\] = \[12\], got \[4\]"),
    "batch_sizes": (torch.tensor([1, 2]), r"positive and never increase, got \[1, 2\]"),
    "input_rows": (torch.tensor([0, 3, 1]), "input_rows must be from 0 to 2, got 3 for token 1"),
}


@compiled
@pytest.mark.parametrize("name", WRONG)
def test_the_bare_operator_refuses_what_does_not_fit(name: str) -> None:
    """Whoever calls it past the public function must not get at memory that is not theirs."""
    drawn = {n: x.detach() for n, x in arguments([2, 1], 3, 4).items()} | {"input_rows": None}
    wrong, message = WRONG[name]
    drawn[name] = wrong if wrong.dtype == torch.int64 else wrong.double()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.captioner.gru_packed(*drawn.values())


def test_the_public_function_names_what_does_not_fit() -> None:
    drawn = {n: x.detach() for n, x in arguments([2, 1], 3, 4).items()}
    for name, tensor, message in (
        ("hx", torch.zeros(2, 5).double(), r"hx must be \[B, H\] = \[2, 4\], got \[2, 5\]"),
        ("bias_hh", torch.zeros(12), r"bias_hh must be torch.float64 as input is, got torch.fl"),
        ("batch_sizes", torch.ones(2), r"batch_sizes must be \[T\] of int64"),
    ):
        with pytest.raises(ValueError, match=message):
            gru_packed(**{**drawn, name: tensor})
