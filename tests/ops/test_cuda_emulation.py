"""The CUDA operator's own sources, run on the host by tests/emulation.

tests/emulation/README.md says what this cannot show. The same kernels under sanitizers, and the
emulation itself, are tested in test_cuda_sanitized.py, the persistent kernels in
test_persistent_emulation.py and test_persistent_sanitized.py, and a real GPU in test_lstm_cuda.py.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from emulated_lstm import FLOATS, LAYOUTS, RESULTS, draw, draw_models, of_model, run, torch_lstm
from torch import Tensor

from captioner.ops import reference
from captioner.ops.lstm_packed import _fake, _fake_backward
from captioner.ops.lstm_step import reference_step
from captioner.ops.reference import BackwardArguments, ForwardArguments

if TYPE_CHECKING:
    from conftest import Compiler, Emulated

pytestmark = pytest.mark.slow  # the operators have to be compiled
# 5 and 33 take the kernels that move single numbers, 32 those that move vectors.
HIDDEN = [5, 32, 33]


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, wanted in expected.items():
        torch.testing.assert_close(
            actual[name], wanted, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients_are_those_of_torch(
    emulated: Emulated, layout: str, hidden: int, rows: int | None
) -> None:
    arguments = draw(LAYOUTS[layout], hidden=hidden, rows=rows)
    assert_close(run(emulated, arguments), torch_lstm(arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_returned_is_that_of_the_readable_twin(emulated: Emulated, layout: str) -> None:
    x = draw(LAYOUTS[layout], hidden=6)
    inputs = [x["input"], x["batch_sizes"], *(x[name] for name in FLOATS[1:])]
    expected = reference.forward(ForwardArguments(*inputs))
    outputs = emulated.ops.lstm_packed(*inputs)
    grads = [x["grad_output"], x["grad_hy"], x["grad_cy"]]
    twin = reference.backward(BackwardArguments(*grads, *inputs[:-2], expected[0], expected[3]))
    gradients = emulated.ops.lstm_packed_backward(*grads, *inputs[:-2], outputs[0], outputs[3])
    for mine, theirs in zip((*outputs, *gradients), (*expected, *twin), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
        assert mine.is_contiguous() and mine.dtype == theirs.dtype


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(
    ("dtype", "unit", "units"),
    [(torch.float32, 2**-23, 8), (torch.bfloat16, 2**-8, 4), (torch.float16, 2**-11, 4)],
)
def test_shorter_types_stay_near_float64(
    emulated: Emulated, dtype: torch.dtype, unit: float, units: int, hidden: int, rows: int | None
) -> None:
    """`unit` is one in the last place of the largest figure.

    Half types: two GEMMs and one gradient a step round to it and the errors of 5 steps add up;
    gates, cells and sums are float32. float32: the same, with sums of some 30 terms each.
    """
    arguments = draw(LAYOUTS["ragged"], hidden=hidden, dtype=dtype, rows=rows)
    expected = torch_lstm(arguments)
    for name, found in run(emulated, arguments).items():
        assert found.dtype == dtype
        error = (found.double() - expected[name]).abs().max()
        assert error <= units * unit * expected[name].abs().max().clamp(min=1), name


def strided(x: Tensor) -> Tensor:
    """The same values in another order of memory."""
    return x.t().contiguous().t() if x.dim() == 2 else x.repeat_interleave(2)[::2]


def unaligned(x: Tensor) -> Tensor:
    """The same values, dense, one element behind where vectors may start."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


@pytest.mark.parametrize("change", [strided, unaligned])
@pytest.mark.parametrize("hidden", [5, 32])
def test_arguments_may_lie_in_memory_as_they_like(
    emulated: Emulated, hidden: int, change: Callable[[Tensor], Tensor]
) -> None:
    plain = draw([4, 3, 1], hidden=hidden, rows=6)
    expected = torch_lstm(plain)
    changed = {n: x if n == "batch_sizes" else change(x) for n, x in plain.items()}
    assert_close(run(emulated, changed), expected)


def test_gradients_may_be_expanded_scalars(emulated: Emulated) -> None:
    arguments = draw([4, 3, 1], hidden=8)
    for name, shape in (("grad_output", (8, 8)), ("grad_hy", (4, 8)), ("hx", (4, 8))):
        arguments[name] = torch.ones((), dtype=torch.float64).expand(shape)
    expected = torch_lstm(arguments)
    arguments["batch_sizes"] = torch.tensor([4, 0, 3, 0, 1, 0])[::2]  # torch.nn.LSTM misreads this
    assert_close(run(emulated, arguments), expected)


def test_arguments_are_not_changed_and_results_share_no_memory(emulated: Emulated) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        arguments = draw([1], hidden=8, dtype=dtype)
        before = {name: x.clone() for name, x in arguments.items()}
        results = run(emulated, arguments)
        assert all(torch.equal(before[name], x) for name, x in arguments.items())
        everything = [*results.values(), *arguments.values()]
        assert len({x.untyped_storage().data_ptr() for x in everything}) == len(everything)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("hidden", [5, 32])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_everything_promised_is_written(
    emulated: Emulated, dtype: torch.dtype, layout: str, hidden: int, rows: int | None
) -> None:
    arguments = draw(LAYOUTS[layout], hidden=hidden, dtype=dtype, rows=rows)
    for name, found in run(emulated, arguments).items():
        assert found.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [5, 32])
def test_repeats_under_any_schedule_are_bit_identical(
    emulated: Emulated, hidden: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = draw([9, 7, 7, 2, 1], hidden=hidden, dtype=dtype, rows=4)
    first = run(emulated, arguments)
    for schedule in ("forward", "reversed", "random:1", "random:2"):
        monkeypatch.setenv("CUDA_EMULATION_SCHEDULE", schedule)
        again = run(emulated, arguments)
        assert all(torch.equal(first[name], again[name]) for name in RESULTS), schedule


def test_every_kernel_is_executed(emulated: Emulated, compiler: Compiler) -> None:
    """Those in the library, whose names stand in the sources, against those that were launched."""
    emulated.reset()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for hidden in (5, 32):
            run(emulated, draw([2, 1], hidden=hidden, dtype=dtype, rows=2))
    names = [
        name
        for source in compiler.kernels
        if source.stem in ("recurrence", "segment_sum")
        for name in re.findall(r"__global__.*?(\w+)\((?:const|\w+<)", source.read_text(), re.S)
    ]
    assert names == ["forward_step", "backward_step", "segment_starts", "segment_sums"]
    symbols = subprocess.run(
        ["nm", "-C", "--defined-only", emulated.library], capture_output=True, text=True, check=True
    ).stdout
    kernels = {
        line.split(" ", 2)[2]
        for line in symbols.splitlines()
        if re.search(rf" [TW] .*::cuda::({'|'.join(names)})[<(]", line)
    }
    assert len(kernels) == 1 + 4 * (2 * 2 + 1)  # four types; a step's with and without vectors
    assert set(emulated.launches()) == kernels


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("layout", ["ragged", "one token", "long outlier"])
def test_each_of_several_models_is_what_it_is_alone(
    emulated: Emulated, layout: str, hidden: int, rows: int | None
) -> None:
    arguments, models = draw_models(3, LAYOUTS[layout], hidden=hidden, rows=rows)
    emulated.reset()
    found = run(emulated, arguments)
    steps = [n for name, n in emulated.launches().items() if "ward_step<" in name]
    assert steps == [len(LAYOUTS[layout])] * 2  # a kernel a step for all
    for k, own in enumerate(models):
        assert_close(of_model(found, k), torch_lstm(own))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_fake_kernels_promise_what_several_models_get(
    emulated: Emulated, dtype: torch.dtype
) -> None:
    x, _ = draw_models(2, [3, 2, 1], hidden=8, rows=4, dtype=dtype)
    head = [x["input"], x["batch_sizes"], *(x[name] for name in FLOATS[1:])]
    outputs = emulated.ops.lstm_packed(*head, x["input_rows"])
    saved = [*head[:-2], outputs[0], outputs[3], x["input_rows"]]
    gradients = emulated.ops.lstm_packed_backward(
        x["grad_output"], x["grad_hy"], x["grad_cy"], *saved
    )
    promised = _fake(*head, x["input_rows"])
    promised += _fake_backward(x["grad_output"], x["grad_hy"], x["grad_cy"], *saved)
    for mine, fake in zip((*outputs, *gradients), promised, strict=True):
        assert (mine.shape, mine.dtype, mine.stride()) == (fake.shape, fake.dtype, fake.stride())


def test_what_is_not_a_number_stays_with_its_model(emulated: Emulated) -> None:
    arguments, _ = draw_models(3, [4, 3, 1], hidden=8, rows=4)
    expected = run(emulated, arguments)
    for name in ("weight_hh", "input", "grad_output"):
        spoilt = dict(arguments, **{name: arguments[name].clone()})
        spoilt[name][1].fill_(math.nan)
        found = run(emulated, spoilt)
        assert found["hx"][1].isnan().any()
        for result in RESULTS:
            assert torch.equal(found[result][::2], expected[result][::2]), result


def test_rows_beyond_the_input_are_not_read(emulated: Emulated) -> None:
    for wrong in (-1, 4):
        arguments = draw([2, 1], rows=4)
        arguments["input_rows"][1] = wrong
        with pytest.raises(RuntimeError, match=r"forward_step<double, 1>.* trapped at recurrence"):
            run(emulated, arguments)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("bias_hh", (3,), r"bias_hh must be \[4H\] = \[20\], got \[3\]"),
        ("grad_output", (3, 4), r"grad_output must be \[N, H\] = \[3, 5\], got \[3, 4\]"),
        ("grad_hy", (1, 5), r"grad_hy must be \[B, H\] = \[2, 5\], got \[1, 5\]"),
        ("grad_cy", (2, 5, 1), r"grad_cy must be \[B, H\] = \[2, 5\], got \[2, 5, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    emulated: Emulated, name: str, shape: tuple[int, ...], message: str
) -> None:
    arguments = draw([2, 1])
    arguments[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=message):
        run(emulated, arguments)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("input", (3, 3), r"input must be \[K, U, E\], got \[3, 3\]"),
        ("input", (3, 3, 3), r"input must be \[K, U, E\], got \[3, 3, 3\]"),
        ("hx", (2, 5), r"hx must be \[K, B, H\] = \[2, 2, 5\], got \[2, 5\]"),
        ("bias_hh", (3, 20), r"bias_hh must be \[K, 4H\] = \[2, 20\], got \[3, 20\]"),
        ("grad_hy", (2, 1, 5), r"grad_hy must be \[K, B, H\] = \[2, 2, 5\], got \[2, 1, 5\]"),
        ("weight_hh", (0, 20, 5), "K must be at least 1, got tensors of no model"),
        ("weight_hh", (2, 2, 20, 5), r"or \[K, 4H, H\] of K models, got \[2, 2, 20, 5\]"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    emulated: Emulated, name: str, shape: tuple[int, ...], message: str
) -> None:
    arguments, _ = draw_models(2, [2, 1])
    arguments[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=message):
        run(emulated, arguments)


def test_a_workspace_of_another_type_is_refused(emulated: Emulated) -> None:
    x = draw([2, 1], dtype=torch.bfloat16)
    inputs = [x["input"], x["batch_sizes"], *(x[name] for name in FLOATS[1:])]
    output, _, _, workspace = emulated.ops.lstm_packed(*inputs)
    assert workspace.dtype == torch.float32
    with pytest.raises(RuntimeError, match="workspace must be the one that the forward pass"):
        emulated.ops.lstm_packed_backward(
            x["grad_output"], x["grad_hy"], x["grad_cy"], *inputs[:-2], output, workspace.bfloat16()
        )


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_step_of_generation_is_the_readable_one(emulated: Emulated, hidden: int) -> None:
    x = draw([5], hidden=hidden)
    projection = torch.randn(6, 4 * hidden, dtype=torch.float64)
    rows = torch.tensor([5, 0, 2, 2, 1])
    call = (projection, rows, x["hx"], x["cx"], x["weight_hh"])
    expected = reference_step(*call)
    for found, wanted in zip(emulated.ops.lstm_step(*call), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
