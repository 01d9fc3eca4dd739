"""The compiled CPU kernel against torch.nn.LSTM and its readable twin: shapes, instruction sets,
threads, types, numbers at the edge, and what it refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_layers import Arguments, assert_same, layouts, results
from script_runner import Scripts
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from captioner.ops import lstm_packed
from captioner.ops.extension import ABSENT

pytestmark = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))


def arguments(
    sizes: list[int],
    size: int,
    hidden: int,
    *,
    dtype: torch.dtype = torch.float64,
    zero_state: bool = False,
    seed: int = 0,
) -> Arguments:
    """Random arguments of lstm_packed, weights scaled as initialised ones are."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (scale * values).to(dtype).requires_grad_()

    state = 0.0 if zero_state else 1.0
    return {
        "input": draw(sum(sizes), size),
        "batch_sizes": torch.tensor(sizes),
        "hx": draw(sizes[0], hidden, scale=state),
        "cx": draw(sizes[0], hidden, scale=state),
        "weight_ih": draw(4 * hidden, size, scale=size**-0.5),
        "weight_hh": draw(4 * hidden, hidden, scale=hidden**-0.5),
        "bias_ih": draw(4 * hidden),
        "bias_hh": draw(4 * hidden),
    }


def torch_lstm(given_arguments: Arguments, input_rows: Tensor | None) -> tuple[Tensor, ...]:
    """The same by torch.nn.LSTM, in float64, its graph leading back to the arguments."""
    wide = {name: x if name == "batch_sizes" else x.double() for name, x in given_arguments.items()}
    module = nn.LSTM(wide["weight_ih"].shape[1], wide["weight_hh"].shape[1]).double()
    rows = wide["input"] if input_rows is None else wide["input"][input_rows]
    weights = {f"{name}_l0": wide[name] for name in list(wide)[4:]}
    call = (PackedSequence(rows, wide["batch_sizes"]), (wide["hx"][None], wide["cx"][None]))
    output, (hy, cy) = torch.func.functional_call(module, weights, call)
    return output.data, hy[0], cy[0]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    sizes=layouts(),
    size=st.integers(1, 40),
    hidden=st.integers(1, 40),
    zero_state=st.booleans(),
    rows=st.none() | st.integers(1, 8),
    threads=st.integers(1, 4),
)
def test_every_shape_gives_what_torch_gives(
    sizes: list[int], size: int, hidden: int, zero_state: bool, rows: int | None, threads: int
) -> None:
    """Also where tokens share rows of the input, and with threads that get no sequence."""
    drawn = arguments(sizes, size, hidden, zero_state=zero_state)
    input_rows = None
    if rows is not None:
        input_rows = torch.arange(sum(sizes)).mul(5).remainder(rows)
        drawn["input"] = drawn["input"].detach().repeat(rows, 1)[:rows].clone().requires_grad_()
    expected = results(torch_lstm(drawn, input_rows), drawn)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = results(lstm_packed(**drawn, input_rows=input_rows, backend="fused"), drawn)
    finally:
        torch.set_num_threads(before)
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize("hidden", [64, 130, 512])
@pytest.mark.parametrize("zero_state", [False, True])
def test_depths_beyond_one_block_of_the_products(hidden: int, zero_state: bool) -> None:
    drawn = arguments([60, 59, 40, 3, 1, 1], 600, hidden, zero_state=zero_state)
    expected = results(torch_lstm(drawn, None), drawn)
    assert_same(results(lstm_packed(**drawn, backend="fused"), drawn), expected, 1e-10)


# To the largest value of each tensor. float32: an output is a sum of some hundred products, each
# rounded to 2^-24, and gradients add up 30 steps of them. The halves: products take operands of 8
# and 11 bits, and every gradient is rounded to that.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_types_stay_near_float64(dtype: torch.dtype, shared: bool) -> None:
    sizes = [7, 7, 5, 5, 4] + [2] * 10 + [1] * 15
    drawn = arguments(sizes, 48, 80, dtype=dtype)
    rows = torch.arange(sum(sizes)) % 50
    input_rows = rows if shared else None
    outputs = lstm_packed(**drawn, input_rows=input_rows, backend="fused")
    assert {x.dtype for x in outputs} == {dtype}
    expected = results(torch_lstm(drawn, input_rows), drawn)
    assert_same(results(outputs, drawn), expected, TOLERANCES[dtype])


Compare = Callable[[str], "subprocess.CompletedProcess[str]"]
COMPARE = """
import torch
from captioner.ops import additive_scores, gru_packed, linear_cross_entropy, lstm_packed

def run(operator, shapes, dtype):
    torch.manual_seed(0)
    drawn = [torch.randn(shape, dtype=torch.float64) / 3 for shape in shapes]
    leaves = [values.to(dtype).requires_grad_() for values in drawn]
    outputs = operator(*leaves)
    return [*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), leaves)]

def compare(operator, shapes):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        mine = run(lambda *x: operator(*x, "fused"), shapes, dtype)
        twin = run(lambda *x: operator(*x, "reference"), shapes, torch.float64)
        for a, b in zip(mine, twin):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)

def lstm(x, *rest):
    *rest, backend = rest
    return lstm_packed(x, batch_sizes, *rest, backend=backend)

def gru(x, *rest):
    *rest, backend = rest
    return gru_packed(x, batch_sizes, *rest, backend=backend)

def loss(*tensors):
    *tensors, backend = tensors
    given = {"label_smoothing": 0.1, "backend": backend}
    return [linear_cross_entropy(*tensors, targets, **given) / 10]

def scores(queries, keys, weight, backend):
    return [additive_scores(queries, keys, images, weight, backend=backend).square() / 10]

for threads in (1, 3):
    torch.set_num_threads(threads)
    for sizes in ([9, 9, 8, 3, 1], [1], [13], [2, 2, 2]):
        for size, hidden in ((3, 5), (33, 32), (8, 70)):
            n, b, gates, batch_sizes = sum(sizes), sizes[0], 4 * hidden, torch.tensor(sizes)
            state, biases = [(b, hidden)] * 2, [(gates,)] * 2
            compare(lstm, [(n, size), *state, (gates, size), (gates, hidden), *biases])
            gates, biases = 3 * hidden, [(3 * hidden,)] * 2
            compare(gru, [(n, size), state[0], (gates, size), (gates, hidden), *biases])
    targets = torch.randint(301, (211,))
    compare(loss, [(211, 37), (301, 37), (301,)])
    for n, regions, units in ((31, 10, 37), (150, 9, 40), (4, 1, 70)):
        images = torch.randint(4, (n,))
        compare(scores, [(n, units), (4, regions, units), (units,)])
print("equal")
"""


@pytest.fixture(scope="module")
def compare(scripts: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """Run COMPARE with an instruction set, which a process chooses once."""
    program = tmp_path_factory.mktemp("compare") / "compare.py"
    program.write_text(COMPARE)

    def run(instructions: str) -> subprocess.CompletedProcess[str]:
        return scripts.run(program.parent, program, environment={"CAPTIONER_CPU": instructions})

    return run


@pytest.mark.parametrize("instructions", ["avx512", "avx2", "portable"])
def test_every_instruction_set_gives_the_same(instructions: str, compare: Compare) -> None:
    done = compare(instructions)
    if "CAPTIONER_CPU must be auto" in done.stderr:
        pytest.skip(f"this processor does not run {instructions}")
    assert done.stdout == "equal\n", done.stderr[-2000:]


def test_an_unknown_instruction_set_is_refused(compare: Compare) -> None:
    done = compare("quick")
    assert done.returncode != 0
    assert "CAPTIONER_CPU must be auto, portable or an instruction set" in done.stderr


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_repeats_have_the_same_bits_for_a_number_of_threads(number: int) -> None:
    drawn = arguments([6, 5, 5, 2, 1], 12, 40, dtype=torch.float32)
    rows = torch.tensor([0, 3, 3, 1, 0, 0, 2, 2, 2, 1, 0, 3, 1, 1, 0, 2, 3, 3, 0])
    torch.set_num_threads(number)
    runs = [
        results(lstm_packed(**drawn, input_rows=rows, backend="fused"), drawn) for _ in range(3)
    ]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New tensors are full of NaN until somebody writes them."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("zero_state", [False, True])
@pytest.mark.parametrize("sizes", [[4, 3, 3, 1], [5], [1, 1]])
def test_nothing_that_was_not_written_is_read_or_returned(
    sizes: list[int], zero_state: bool
) -> None:
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    drawn = arguments(sizes, 7, 21, zero_state=zero_state)
    outputs = torch.ops.captioner.lstm_packed(*drawn.values())
    assert all(x.isfinite().all() for x in outputs)
    assert all(x.isfinite().all() for x in results(outputs[:3], drawn))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_saturate_and_stay_exact_near_zero(dtype: torch.dtype) -> None:
    """One unit whose gates are set by the biases alone; its numbers by torch's own functions."""
    for value in (0.0, 1e-30, 1e-6, 0.3, 0.62, 0.63, 5.0, 90.0, 1e4, torch.inf):
        for sign in (-1.0, 1.0):
            zero = torch.zeros(1, 1, dtype=dtype)
            weights = torch.zeros(4, 1, dtype=dtype)
            bias = torch.full((4,), sign * value, dtype=dtype)
            _, h, c = lstm_packed(
                zero,
                torch.tensor([1]),
                zero,
                zero,
                weights,
                weights,
                bias,
                torch.zeros_like(bias),
                backend="fused",
            )
            cell = bias[:1].sigmoid() * bias[:1].tanh()
            expected = bias[:1].sigmoid() * cell.tanh()
            close = {"rtol": 8 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny}
            torch.testing.assert_close(c[0], cell, **close)
            torch.testing.assert_close(h[0], expected, **close)


def test_not_a_number_is_handed_on_and_stays_in_its_sequence() -> None:
    drawn = {name: x.detach() for name, x in arguments([3, 2, 2], 4, 9).items()}
    drawn["input"][1] = torch.nan
    output, hy, _ = lstm_packed(**drawn, backend="fused")
    assert output[[1, 4, 6]].isnan().all() and hy[1].isnan().all()
    assert output[[0, 2, 3, 5]].isfinite().all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([0, 1, 4]), "input_rows must be from 0 to 3, got 4 for token 2"),
        (torch.tensor([0, -1, 2]), "input_rows must be from 0 to 3, got -1 for token 1"),
        (torch.tensor([0, 1]), r"batch_sizes must sum to N = 2, got 3"),
        (
            torch.tensor([0.0, 1.0, 2.0]),
            r"input_rows must be \[N\] of int64, got \[3\] of torch.fl",
        ),
        (torch.tensor([[0, 1, 2]]), r"input_rows must be \[N\] of int64, got \[1, 3\]"),
        (torch.zeros(3, dtype=torch.int64, device="meta"), "input_rows must be on cpu, got meta"),
    ],
)
def test_wrong_rows_are_refused(rows: Tensor, message: str) -> None:
    drawn = arguments([2, 1], 3, 4)
    drawn["input"] = torch.zeros(4, 3, dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError), match=message):
        lstm_packed(**drawn, input_rows=rows, backend="fused")


WRONG = {
    "hx": (torch.zeros(1, 4), r"hx must be \[B, H\] = \[2, 4\], got \[1, 4\]"),
    "weight_ih": (torch.zeros(16, 2), r"weight_ih must be \[4H, E\] = \[16, 3\], got \[16, 2\]"),
    "weight_hh": (torch.zeros(12, 4), r"weight_hh must be \[4H, H\], or .* got \[12, 4\]"),
    "bias_ih": (torch.zeros(4), r"bias_ih must be \[4H\] = \[16\], got \[4\]"),
    "cx": (torch.zeros(2, 4), "cx must be of the type of input"),
    "batch_sizes": (torch.tensor([1, 2]), r"positive and never increase, got \[1, 2\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_bare_operator_refuses_what_does_not_fit(name: str) -> None:
    """Whoever calls it past the public function must not get at memory that is not theirs."""
    drawn = {n: x.detach() for n, x in arguments([2, 1], 3, 4).items()}
    wrong, message = WRONG[name]
    drawn[name] = wrong if name in ("cx", "batch_sizes") else wrong.double()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.captioner.lstm_packed(*drawn.values())
