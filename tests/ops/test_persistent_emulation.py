"""The persistent CUDA kernels behind the operator, run on the host by tests/emulation.

The emulated device has eight multiprocessors; test_lstm_cuda.py tests a real one. Tensor cores take
bfloat16, float16 and, of float32, TF32.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from emulated_lstm import (
    FLOATS,
    RESULTS,
    Arguments,
    draw,
    draw_models,
    of_model,
    run,
    torch_lstm,
)
from emulated_lstm import LAYOUTS as EMULATED_LAYOUTS
from torch import Tensor

from captioner.ops.algorithms import Algorithm, fits

if TYPE_CHECKING:
    from conftest import Emulated

pytestmark = pytest.mark.slow  # the operators have to be compiled
PLAIN, PERSISTENT, CLUSTER = Algorithm
BOTH = pytest.mark.parametrize("algorithm", [PERSISTENT, CLUSTER], ids=lambda one: one.name)
# What one in the last place of the largest figure is: TF32 has ten bits, as float16 has.
UNITS = {torch.float32: 2**-11, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = pytest.mark.parametrize("dtype", UNITS, ids=str)
LAYOUTS = {**EMULATED_LAYOUTS, "two groups": [19, 17, 9, 8, 1]}


def assert_near(found: dict[str, Tensor], x: Arguments, units: float = 4) -> None:
    """GEMM operands and what steps exchange round to the type; gates, cells and accumulators are
    float32. The errors of some five steps add up."""
    dtype = x["input"].dtype
    for name, wanted in torch_lstm(x).items():
        assert found[name].dtype == dtype
        error = (found[name].double() - wanted).abs().max()
        assert error <= units * UNITS[dtype] * wanted.abs().max().clamp(min=1), f"{name}: {error}"


@DTYPES
@BOTH
@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("hidden", [8, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients_are_those_of_torch(
    emulated: Emulated,
    layout: str,
    hidden: int,
    rows: int | None,
    algorithm: int,
    dtype: torch.dtype,
) -> None:
    arguments = draw(LAYOUTS[layout], hidden=hidden, rows=rows, dtype=dtype)
    assert_near(run(emulated, arguments, algorithm=algorithm), arguments)


@DTYPES
def test_several_blocks_share_a_state(emulated: Emulated, dtype: torch.dtype) -> None:
    arguments = draw([20, 18, 3], hidden=136, inputs=16, dtype=dtype)
    found = run(emulated, arguments, algorithm=PERSISTENT)
    assert_near(found, arguments)
    cluster = run(emulated, arguments, algorithm=CLUSTER)
    assert_near(cluster, arguments)
    if dtype == torch.float32:  # of the same kernels; half types accumulate by tiles
        assert all(torch.equal(found[name], cluster[name]) for name in RESULTS)


@DTYPES
@pytest.mark.parametrize("schedule", ["reversed", "eager", "random:1"])
def test_repeats_under_any_schedule_are_bit_identical(
    emulated: Emulated, dtype: torch.dtype, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = draw([9, 7, 7, 2, 1], hidden=72, dtype=dtype, rows=4)
    first = run(emulated, arguments, algorithm=PERSISTENT)
    monkeypatch.setenv("CUDA_EMULATION_SCHEDULE", schedule)
    again = run(emulated, arguments, algorithm=PERSISTENT)
    assert all(torch.equal(first[name], again[name]) for name in RESULTS)


@DTYPES
def test_any_backward_follows_any_forward(emulated: Emulated, dtype: torch.dtype) -> None:
    x = draw([5, 3, 3, 1], hidden=16, dtype=dtype)
    head = [x[name] for name in ("input", "hx", "cx", "weight_ih", "weight_hh")]
    head.insert(1, x["batch_sizes"])
    grads = [x[name] for name in ("grad_output", "grad_hy", "grad_cy")]
    for first, second in ((1, 0), (0, 1), (2, 1), (0, 2)):
        outputs = emulated.ops.lstm_packed(*head, x["bias_ih"], x["bias_hh"], None, False, first)
        gradients = emulated.ops.lstm_packed_backward(
            *grads, *head, outputs[0], outputs[3], None, True, False, second
        )
        assert_near(dict(zip(RESULTS, (*outputs[:3], *gradients), strict=True)), x)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


CAPACITY, BATCH, STEPS = 30, 7, 6
SIZES = [[7, 5, 4, 2, 1, 1], [7, 7, 7, 7, 2, 0], [3, 2, 0, 0, 0, 0], [0] * 6, [1] * 6]


def filled_part(sizes: list[int], whole: Arguments) -> Arguments:
    """The part of `whole` that `sizes` fill, in the ordinary form."""
    filled = [size for size in sizes if size]
    tokens, batch = sum(filled), filled[0]
    part = dict(whole)
    rows = ("grad_output", "input_rows") if "input_rows" in whole else ("input", "grad_output")
    part |= {name: whole[name][:tokens] for name in rows}
    part |= {name: whole[name][:batch] for name in ("hx", "cx", "grad_hy", "grad_cy")}
    return {**part, "batch_sizes": torch.tensor(filled)}


@DTYPES
@BOTH
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("rows", [None, 4])
def test_one_set_of_buffers_serves_any_lengths(
    emulated: Emulated, dtype: torch.dtype, rows: int | None, algorithm: int
) -> None:
    """As in a replayed graph: the same buffers, only batch_sizes is written."""
    whole = draw([BATCH] * 4 + [2], hidden=24, dtype=dtype, rows=rows)
    assert len(whole["grad_output"]) == CAPACITY
    whole["batch_sizes"] = torch.zeros(STEPS, dtype=torch.int64)
    for sizes in [*SIZES, *reversed(SIZES)]:
        whole["batch_sizes"].copy_(torch.tensor(sizes))
        found = run(emulated, whole, capacity=True, algorithm=algorithm)
        assert all(value.isfinite().all() for value in found.values())
        tokens, batch = sum(sizes), sizes[0]
        assert not found["output"][tokens:].any()
        states = {"hy": "hx", "cy": "cx", "hx": "grad_hy", "cx": "grad_cy"}
        for result, kept in states.items():
            assert torch.equal(found[result][batch:], whole[kept][batch:]), result
        if not tokens:
            weights = ("weight_ih", "weight_hh", "bias_ih", "input")
            assert not any(found[name].any() for name in weights)
            continue
        part = filled_part(sizes, whole)
        fresh = run(emulated, part, algorithm=algorithm)
        for name in ("output", "hy", "cy", "hx", "cx"):
            count = len(fresh[name])
            assert torch.equal(found[name][:count], fresh[name]), name
        found |= {name: found[name][: len(fresh[name])] for name in RESULTS}
        assert_near(found, part)
        plain = run(emulated, part)
        for name in RESULTS:
            scale = plain[name].abs().max().clamp(min=1)
            assert (found[name] - plain[name]).abs().max() <= 4 * UNITS[dtype] * scale, name


@pytest.mark.usefixtures("poisoned_memory")
@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_promised_is_written(
    emulated: Emulated, layout: str, dtype: torch.dtype
) -> None:
    arguments = draw(LAYOUTS[layout], hidden=16, dtype=dtype, rows=4)
    for name, found in run(emulated, arguments, algorithm=PERSISTENT).items():
        assert found.isfinite().all(), name


# What the kernels compute; the other gradients are GEMMs, batched for several models.
OF_KERNELS = ("output", "hy", "cy", "hx", "cx")


@DTYPES
@BOTH
@pytest.mark.parametrize("rows", [None, 4])
def test_each_of_several_models_gets_the_bits_that_it_gets_alone(
    emulated: Emulated, rows: int | None, algorithm: int, dtype: torch.dtype
) -> None:
    """However groups are shared: eight multiprocessors hold two groups of H 72 by tiles, so that a
    model has two of them alone, and three take turns in two launches."""
    arguments, models = draw_models(3, [19, 17, 8, 1], hidden=72, rows=rows, dtype=dtype)
    emulated.reset()
    found = run(emulated, arguments, algorithm=algorithm)
    launches = {n for name, n in emulated.launches().items() if "ward_" in name}
    if algorithm == PERSISTENT and dtype != torch.float32:
        assert launches == {2}
    for k, own in enumerate(models):
        alone, of_all = run(emulated, own, algorithm=algorithm), of_model(found, k)
        for name in OF_KERNELS:
            assert torch.equal(of_all[name], alone[name]), name
        assert_near(of_all, own)


@pytest.mark.usefixtures("poisoned_memory")
@DTYPES
@BOTH
def test_several_models_fill_a_part_of_the_capacity(
    emulated: Emulated, dtype: torch.dtype, algorithm: int
) -> None:
    whole, models = draw_models(2, [BATCH] * 4 + [2], hidden=24, dtype=dtype, rows=4)
    for sizes in SIZES[:4]:
        filled = torch.tensor([*sizes, *[0] * (STEPS - len(sizes))])
        found = run(emulated, {**whole, "batch_sizes": filled}, capacity=True, algorithm=algorithm)
        assert all(value.isfinite().all() for value in found.values())
        for k, own in enumerate(models):
            alone = run(
                emulated, {**own, "batch_sizes": filled}, capacity=True, algorithm=algorithm
            )
            for name in OF_KERNELS:
                assert torch.equal(found[name][k], alone[name]), name


@BOTH
def test_what_is_not_a_number_stays_with_its_model(emulated: Emulated, algorithm: int) -> None:
    arguments, _ = draw_models(3, [9, 4, 1], hidden=72, rows=4, dtype=torch.bfloat16)
    expected = run(emulated, arguments, algorithm=algorithm)
    for name in ("weight_hh", "input", "grad_output"):
        spoilt = dict(arguments, **{name: arguments[name].clone()})
        spoilt[name][1].fill_(math.nan)
        found = run(emulated, spoilt, algorithm=algorithm)
        assert found["hx"][1].isnan().any()
        for result in RESULTS:
            assert torch.equal(found[result][::2], expected[result][::2]), result


def test_whether_an_algorithm_fits_can_be_asked_under_vmap(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the choice of an algorithm for several models does."""
    asked = {"lstm_algorithm_fits": emulated.ops.lstm_algorithm_fits}
    monkeypatch.setattr(torch.ops, "captioner", SimpleNamespace(**asked))
    answers = []

    def ask(weight_hh: Tensor) -> Tensor:
        answers.extend(fits(weight_hh, 64, one) for one in Algorithm)
        return weight_hh

    torch.vmap(ask)(torch.zeros(3, 256, 64, dtype=torch.bfloat16))
    torch.vmap(ask)(torch.zeros(3, 256, 64, dtype=torch.float64))
    assert answers == [True, True, True, True, False, False]


def test_arguments_may_lie_in_memory_as_they_like(emulated: Emulated) -> None:
    plain = draw([4, 3, 1], hidden=16, dtype=torch.bfloat16, rows=6)
    expected = run(emulated, plain, algorithm=PERSISTENT)

    def strided(x: Tensor) -> Tensor:
        return x.t().contiguous().t() if x.dim() == 2 else x.repeat_interleave(2)[::2]

    def unaligned(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)

    for change in (strided, unaligned):
        changed = {n: x if n == "batch_sizes" else change(x) for n, x in plain.items()}
        found = run(emulated, changed, algorithm=PERSISTENT)
        for name in RESULTS:
            torch.testing.assert_close(found[name], expected[name])


def test_every_kernel_is_executed(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """By three types, two algorithms and, in backward, warp groups of 16 and of 8 columns; by tiles
    of each shape."""
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "132")
    emulated.reset()
    for dtype in UNITS:
        for algorithm in (PERSISTENT, CLUSTER):
            run(emulated, draw([2, 1], hidden=8, dtype=dtype), algorithm=algorithm)
    symbols = subprocess.run(
        ["nm", "-C", "--defined-only", emulated.library], capture_output=True, text=True, check=True
    ).stdout
    pattern = r" [TWt] (void captioner_emulated::cuda::(?:for|back)ward_steps<.*)"
    kernels = set(re.findall(pattern, symbols))
    assert len(kernels) == 3 * 2 * (1 + 2)
    launched = {name for name in emulated.launches() if "ward_steps<" in name}
    left = [name for name in kernels - launched if ", 1>" not in name]
    # Warp groups of 8 columns and half types without tiles are for a long K, slow here:
    # test_persistent_sanitized.py has them.
    assert len(launched) == 4 * 2, launched
    assert len(left) == 2 * 2 and all("FlagExchange" in name for name in left), left
    tiles = set(re.findall(pattern.replace("steps", "tiles"), symbols))
    assert len(tiles) == 2 * 2 * 3
    for hidden in (264, 520):
        run(emulated, draw([1, 1], hidden=hidden, dtype=torch.float16), algorithm=PERSISTENT)
    left = [name for name in tiles - set(emulated.launches()) if "BFloat16, 16" not in name]
    assert not left


def test_what_a_device_does_not_hold_is_refused_in_numbers(emulated: Emulated) -> None:
    fits = emulated.ops.lstm_algorithm_fits
    cases = {
        "H = 36 must be a multiple of 8": draw([2, 1], hidden=36, dtype=torch.bfloat16),
        "H = 1024 .* fit the registers": draw([1], hidden=1024, dtype=torch.bfloat16),
        "takes float32": draw([2, 1], hidden=16, dtype=torch.float64),
    }
    for message, arguments in cases.items():
        assert not fits(arguments["weight_hh"], len(arguments["hx"]), PERSISTENT)
        with pytest.raises(RuntimeError, match=message):
            run(emulated, arguments, algorithm=PERSISTENT)
    weight = draw([1], hidden=64, dtype=torch.bfloat16)["weight_hh"]
    assert all(fits(weight, 64, one) for one in Algorithm)
    with pytest.raises(RuntimeError, match=r"algorithm must be 0 .*, got 3"):
        fits(weight, 64, 3)


def test_the_capacity_form_needs_the_persistent_kernels(emulated: Emulated) -> None:
    with pytest.raises(RuntimeError, match="the capacity form needs the persistent LSTM"):
        run(emulated, draw([2, 1], dtype=torch.float32), capacity=True)


def test_a_batch_beyond_the_capacity_ends_the_launch(emulated: Emulated) -> None:
    for sizes in ([4, 3], [5, 0]):
        arguments = draw([4, 2], hidden=8, dtype=torch.bfloat16)
        arguments["batch_sizes"] = torch.tensor(sizes)
        with pytest.raises(RuntimeError, match=r"forward_tiles<.* trapped at block"):
            run(emulated, arguments, capacity=True, algorithm=PERSISTENT)


def test_rows_beyond_the_input_are_not_read(emulated: Emulated) -> None:
    for wrong in (-1, 4):
        arguments = draw([2, 1], hidden=8, rows=4, dtype=torch.bfloat16)
        arguments["input_rows"][1] = wrong
        with pytest.raises(RuntimeError, match=r"forward_tiles<.* trapped at tiled"):
            run(emulated, arguments, algorithm=PERSISTENT)


def test_shapes_that_do_not_fit_are_refused(emulated: Emulated) -> None:
    for name, shape, message in (
        ("hx", (2, 9), r"hx must be \[B, H\] = \[2, 8\], got \[2, 9\]"),
        ("batch_sizes", (2, 1), r"batch_sizes must be \[T\] of int64 with T >= 1"),
        ("grad_output", (4, 8), r"grad_output must be \[N, H\] = \[3, 8\]"),
    ):
        arguments = draw([2, 1], hidden=8, dtype=torch.bfloat16)
        arguments[name] = torch.zeros(shape).to(arguments[name].dtype)
        with pytest.raises(RuntimeError, match=message):
            run(emulated, arguments, capacity=True, algorithm=PERSISTENT)
    assert set(FLOATS) < set(arguments)
