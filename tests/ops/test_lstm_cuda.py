"""The fused LSTM on a real GPU: results, streams, devices, graphs and what must not synchronise.

Needs nothing but torch, numpy and pytest. Skipped, aloud, without a GPU or without the extension.

Shapes: B sequences, T longest, N packed tokens, U rows of input, E input size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from captioner.errors import ConfigError
from captioner.ops import choose_backend, lstm_packed, lstm_step
from captioner.ops.algorithms import Algorithm, fits
from captioner.ops.lstm_step import reference_step


def why_not() -> str | None:
    if not torch.cuda.is_available():
        return "needs a GPU"
    try:
        choose_backend("fused", "cuda")
    except ConfigError as error:
        return f"needs the extension built for CUDA: {error}"
    return None


SKIPPED = why_not()
pytestmark = pytest.mark.skipif(SKIPPED is not None, reason=SKIPPED or "")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "ragged": [4, 4, 2, 1, 1],
    "all of length one": [5],
    "all equal": [3, 3, 3],
    "one sequence": [1, 1, 1, 1],
    "one token": [1],
    "long outlier": [3] + [1] * 60,
    "wide": [70, 64, 33, 5],
}
NAMES = ["input", "hx", "cx", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
Arguments = dict[str, Tensor]
Call = Callable[..., tuple[Tensor, ...]]


def draw(
    sizes: list[int],
    *,
    hidden: int = 5,
    inputs: int = 3,
    dtype: torch.dtype = torch.float64,
    device: str = "cuda",
    rows: int | None = None,
    seed: int = 0,
) -> Arguments:
    """Arguments by name, drawn on the CPU so that every device gets the same."""
    generator = torch.Generator().manual_seed(seed)
    tokens, batch = sum(sizes), sizes[0]
    states, gates = [(batch, hidden)] * 2, 4 * hidden
    weights = [(gates, inputs), (gates, hidden), (gates,), (gates,)]
    sizes_of = [(tokens if rows is None else rows, inputs), *states, *weights]
    shapes: dict[str, tuple[int, ...]] = dict(zip(NAMES, sizes_of, strict=True))
    drawn = {
        name: torch.randn(shapes[name], generator=generator, dtype=torch.float64) for name in NAMES
    }
    drawn["weight_ih"] /= inputs**0.5
    drawn["weight_hh"] /= hidden**0.5  # else the recurrence is chaotic and tells nothing
    arguments = {name: x.to(device, dtype).requires_grad_() for name, x in drawn.items()}
    arguments["batch_sizes"] = torch.tensor(sizes)
    if rows is not None:  # the last row of input stays unread
        index = torch.randint(max(rows - 1, 1), (tokens,), generator=generator)
        arguments["input_rows"] = index.to(device)
    return arguments


def fused(x: Arguments) -> tuple[Tensor, ...]:
    weights = (x["weight_ih"], x["weight_hh"], x["bias_ih"], x["bias_hh"])
    head = (x["input"], x["batch_sizes"], x["hx"], x["cx"])
    return lstm_packed(*head, *weights, input_rows=x.get("input_rows"), backend="fused")


def torch_lstm(x: Arguments) -> tuple[Tensor, ...]:
    """torch.nn.LSTM of the same arguments, which may be on any device."""
    module = nn.LSTM(
        x["input"].shape[1], x["hx"].shape[1], dtype=x["input"].dtype, device=x["input"].device
    )
    weights = {f"{name}_l0": x[name] for name in NAMES[3:]}
    tokens = x["input"][x["input_rows"]] if "input_rows" in x else x["input"]
    state = (x["hx"][None], x["cx"][None])
    packed = PackedSequence(tokens, x["batch_sizes"])
    output, (hy, cy) = torch.func.functional_call(module, weights, (packed, state))
    return output.data, hy[0], cy[0]


def exact(x: Arguments) -> Arguments:
    """Copies in float64 on the CPU, where nothing but ATen's plain LSTM computes."""
    return {
        name: value.detach().double().cpu().requires_grad_() if name in NAMES else value.cpu()
        for name, value in x.items()
    }


def weighted(outputs: tuple[Tensor, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    parts = [
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum()
        for out in outputs
    ]
    return torch.stack(parts).sum()


def everything(run: Callable[[Arguments], tuple[Tensor, ...]], x: Arguments) -> dict[str, Tensor]:
    """Outputs, and gradients of a fixed weighting of them, by name."""
    outputs = run(x)
    gradients = torch.autograd.grad(weighted(outputs), [x[name] for name in NAMES])
    found = dict(zip(("output", "hy", "cy"), outputs, strict=True))
    found.update({f"grad of {n}": g for n, g in zip(NAMES, gradients, strict=True)})
    return {name: value.detach() for name, value in found.items()}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """`tolerance` is relative to the largest figure of each tensor."""
    for name, wanted in expected.items():
        error = (found[name].double().cpu() - wanted.double().cpu()).abs().max()
        assert error <= tolerance * wanted.abs().max().clamp(min=1), f"{name}: {error}"


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("hidden", [5, 32, 33, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64_is_that_of_torch(layout: str, hidden: int, rows: int | None) -> None:
    arguments = draw(LAYOUTS[layout], hidden=hidden, rows=rows)
    assert_near(everything(fused, arguments), everything(torch_lstm, exact(arguments)), 1e-10)


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("hidden", [5, 32, 33, 512])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 32 * 2**-23), (torch.bfloat16, 8 * 2**-8), (torch.float16, 8 * 2**-11)],
)
def test_shorter_types_stay_near_float64(
    dtype: torch.dtype, tolerance: float, hidden: int, rows: int | None
) -> None:
    """Units in the last place of the largest figure, times 8 (32 for the longer sums of float32).

    Half types round two GEMMs and one gradient a step, and the errors of 5 steps add up; gates,
    cells and sums are float32. TF32 is off, as torch has it by default.
    """
    arguments = draw(LAYOUTS["ragged"], hidden=hidden, dtype=dtype, rows=rows)
    found = everything(fused, arguments)
    assert all(value.dtype == dtype for value in found.values())
    assert_near(found, everything(torch_lstm, exact(arguments)), tolerance)


@pytest.mark.parametrize("hidden", [2, 4])
@pytest.mark.parametrize("sizes", [[3, 2, 1], [1], [2, 2]])
def test_gradients_are_those_of_finite_differences(sizes: list[int], hidden: int) -> None:
    arguments = draw(sizes, hidden=hidden)

    def run(*floats: Tensor) -> tuple[Tensor, ...]:
        return fused({**arguments, **dict(zip(NAMES, floats, strict=True))})

    assert torch.autograd.gradcheck(run, tuple(arguments[name] for name in NAMES))


@pytest.mark.parametrize("rows", [None, 50])
@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_are_bit_identical(dtype: torch.dtype, rows: int | None) -> None:
    arguments = draw([64] * 10 + [9, 8, 1], hidden=128, inputs=64, dtype=dtype, rows=rows)
    first = everything(fused, arguments)
    for _ in range(3):
        again = everything(fused, arguments)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_promised_is_written(dtype: torch.dtype, layout: str, rows: int | None) -> None:
    arguments = draw(LAYOUTS[layout], hidden=32, dtype=dtype, rows=rows)
    for name, found in everything(fused, arguments).items():
        assert found.isfinite().all(), name


@pytest.mark.parametrize("hidden", [5, 32])
def test_arguments_may_lie_in_memory_as_they_like(hidden: int) -> None:
    plain = draw([4, 3, 1], hidden=hidden)
    expected = everything(torch_lstm, exact(plain))

    def strided(x: Tensor) -> Tensor:
        return x.t().contiguous().t() if x.dim() == 2 else x.repeat_interleave(2)[::2]

    def unaligned(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)

    for change in (strided, unaligned):
        changed = {name: change(plain[name].detach()).requires_grad_() for name in NAMES}
        changed["batch_sizes"] = plain["batch_sizes"]
        assert_near(everything(fused, changed), expected, 1e-10)


@pytest.mark.parametrize("rows", [None, 4])
def test_nothing_waits_for_the_gpu(rows: int | None) -> None:
    """Neither direction reads anything back, also not to sort the rows."""
    arguments = draw([4, 4, 2, 1], hidden=32, dtype=torch.float32, rows=rows)
    leaves = [arguments[name] for name in NAMES]
    everything(fused, arguments)  # cuBLAS sets itself up
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = fused(arguments)
        torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs])
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_side_stream_is_used_and_waits_for_nobody_else() -> None:
    """A long kernel on the default stream is still running when the side stream is done."""
    arguments = draw([8, 8, 4], hidden=32, dtype=torch.float32)
    expected = everything(fused, arguments)
    torch.cuda.synchronize()
    side, late = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side), torch.no_grad():
        fused(arguments)  # takes memory for this stream, which may wait
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)  # about half a second on the default stream
    late.record()
    with torch.cuda.stream(side), torch.no_grad():
        output = fused(arguments)[0]
    side.synchronize()
    assert not late.query(), "the side stream waited for the default stream"
    assert torch.equal(output, expected["output"])
    torch.cuda.synchronize()


def test_two_streams_at_once_give_what_each_gives_alone() -> None:
    drawn = [draw([8, 8, 4, 2], hidden=64, dtype=torch.float32, seed=seed) for seed in (1, 2)]
    assert_streams_do_not_mix(fused, drawn)


def assert_streams_do_not_mix(run: Call, drawn: list[Arguments]) -> None:
    expected = [everything(run, arguments) for arguments in drawn]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in drawn]
    found: list[dict[str, Tensor]] = [{} for _ in drawn]
    for _ in range(5):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[k] = everything(run, drawn[k])
    torch.cuda.synchronize()
    for mine, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_arguments_device_is_used_whichever_is_current() -> None:
    first = everything(fused, draw([4, 2], hidden=32, device="cuda:0", rows=3))
    with torch.cuda.device(0):
        second = everything(fused, draw([4, 2], hidden=32, device="cuda:1", rows=3))
        assert torch.cuda.current_device() == 0
    assert all(value.device == torch.device("cuda:1") for value in second.values())
    assert_near(second, first, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_of_several_lengths_replay_in_any_order(dtype: torch.dtype) -> None:
    """A graph holds the loop over batch_sizes: it serves its own lengths, with new numbers."""
    layouts = {"short": [4, 2], "long": [4, 4, 4, 3, 1], "ragged": [6, 5, 1, 1]}
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, Arguments, dict[str, Tensor]]] = {}
    for name, sizes in layouts.items():
        arguments = draw(sizes, hidden=32, dtype=dtype, rows=5)
        weights = [torch.randn_like(out) for out in fused(arguments)]
        leaves = [arguments[leaf] for leaf in NAMES]

        def step(
            arguments: Arguments = arguments,
            leaves: list[Tensor] = leaves,
            weights: list[Tensor] = weights,
        ) -> dict[str, Tensor]:
            outputs = fused(arguments)
            gradients = torch.autograd.grad(outputs, leaves, weights)
            results = [*outputs, *gradients]
            return {str(k): value.detach() for k, value in enumerate(results)}

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()  # cuBLAS sets itself up outside of the capture
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graphs[name] = (graph, arguments, captured)
        for round_number, again in enumerate([*graphs, *reversed(graphs)]):
            replayed, own, results = graphs[again]
            fresh = draw(layouts[again], hidden=32, dtype=dtype, rows=5, seed=round_number)
            with torch.no_grad():
                for key in (*NAMES, "input_rows"):
                    own[key].copy_(fresh[key])
            replayed.replay()
            torch.cuda.synchronize()
            eager = fused(own)
            # cuBLAS may take another algorithm while a graph captures it.
            for mine, theirs in zip(list(results.values())[:3], eager, strict=True):
                torch.testing.assert_close(mine, theirs.detach())


def test_gradients_in_a_graph_are_those_of_eager_mode() -> None:
    arguments = draw([5, 3, 3, 1], hidden=16, dtype=torch.float32)
    leaves = [arguments[name] for name in NAMES]
    weights = [torch.randn_like(out) for out in fused(arguments)]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(fused(arguments), leaves, weights)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    for seed in (1, 2):
        fresh = draw([5, 3, 3, 1], hidden=16, dtype=torch.float32, seed=seed)
        with torch.no_grad():
            for name in NAMES:
                arguments[name].copy_(fresh[name])
        graph.replay()
        torch.cuda.synchronize()
        for mine, theirs in zip(captured, gradients(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.fixture
def tf32_as_it_was() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("tf32_as_it_was")
def test_tf32_follows_the_switch_of_torch() -> None:
    """TF32 has 10 bits of mantissa: its error stands out from float32's by orders of magnitude."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU with TF32")
    arguments = draw([64, 64, 64], hidden=256, inputs=256, dtype=torch.float32)
    expected = torch_lstm(exact(arguments))[0].detach()
    errors = {}
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        output = fused(arguments)[0].detach().double().cpu()
        errors[allowed] = float((output - expected).abs().max())
    assert errors[False] < 1e-5 < errors[True] < 1e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_of_generation_is_the_readable_one(dtype: torch.dtype) -> None:
    """Two roundings to the type apart at most: of the pre-activations and of the result."""
    x = draw([9], hidden=40, dtype=dtype)
    projection = torch.randn(6, 160, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    rows = torch.tensor([5, 0, 2, 2, 1, 4, 4, 0, 3], device="cuda")
    call = [y.detach() for y in (projection, rows, x["hx"], x["cx"], x["weight_hh"])]
    found = lstm_step(*call, backend="fused")
    exact_call = [y if y.dtype == torch.int64 else y.double() for y in call]
    for mine, wanted in zip(found, reference_step(*exact_call), strict=True):
        assert mine.dtype == dtype
        error = (mine.double() - wanted).abs().max()
        assert error <= 16 * torch.finfo(dtype).eps * wanted.abs().max().clamp(min=1)


# -- the persistent kernels ------------------------------------------------------------------------

# What one in the last place of the largest figure is; float32 is multiplied as TF32 here.
UNITS = {torch.float32: 2**-11, torch.bfloat16: 2**-8, torch.float16: 2**-11}
PERSISTENT = pytest.mark.parametrize("dtype", UNITS, ids=str)


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=["persistent", "cluster"])
def persistent(request: pytest.FixtureRequest) -> Call:
    """The LSTM by a persistent algorithm; a call that does not fit the GPU skips the test."""

    def run(x: Arguments, *, capacity: bool = False) -> tuple[Tensor, ...]:
        if not fits(x["weight_hh"], x["hx"].shape[0], Algorithm[request.param]):
            pytest.skip(f"not on this GPU: H = {x['hx'].shape[1]}, {x['hx'].dtype}")
        weights = (x["weight_ih"], x["weight_hh"], x["bias_ih"], x["bias_hh"])
        head, rows = (x["input"], x["batch_sizes"], x["hx"], x["cx"]), x.get("input_rows")
        return lstm_packed(
            *head, *weights, input_rows=rows, capacity=capacity, backend=request.param
        )

    return run


@pytest.mark.usefixtures("tf32_allowed")
@PERSISTENT
@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("hidden", [8, 72, 128, 256, 512, 1024])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_persistent_stays_near_float64(
    persistent: Call, layout: str, hidden: int, rows: int | None, dtype: torch.dtype
) -> None:
    """Operands and what steps exchange round to the type; gates, cells and sums are float32."""
    arguments = draw(LAYOUTS[layout], hidden=hidden, dtype=dtype, rows=rows)
    found = everything(persistent, arguments)
    assert all(value.dtype == dtype for value in found.values())
    steps = 8 if len(LAYOUTS[layout]) < 20 else 32
    assert_near(found, everything(torch_lstm, exact(arguments)), steps * UNITS[dtype])


@pytest.mark.usefixtures("tf32_allowed")
@PERSISTENT
@pytest.mark.parametrize("batch", [1, 16, 64, 257, 1024])
def test_persistent_repeats_are_bit_identical(
    persistent: Call, batch: int, dtype: torch.dtype
) -> None:
    sizes = [batch] * 10 + [(batch + 1) // 2] * 5 + [1]
    arguments = draw(sizes, hidden=256, inputs=64, dtype=dtype, rows=50)
    first = everything(persistent, arguments)
    for _ in range(5):
        again = everything(persistent, arguments)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.usefixtures("tf32_allowed", "poisoned_memory")
@PERSISTENT
@pytest.mark.parametrize("layout", LAYOUTS)
def test_persistent_writes_everything_promised(
    persistent: Call, layout: str, dtype: torch.dtype
) -> None:
    arguments = draw(LAYOUTS[layout], hidden=128, dtype=dtype, rows=4)
    for name, found in everything(persistent, arguments).items():
        assert found.isfinite().all(), name


def with_capacity(batch: int, tokens: int, steps: int, dtype: torch.dtype) -> Arguments:
    """Arguments in the capacity form, batch_sizes on the GPU."""
    arguments = draw([batch] * (tokens // batch), hidden=128, inputs=32, dtype=dtype, rows=6)
    arguments["batch_sizes"] = torch.zeros(steps, dtype=torch.int64, device="cuda")
    return arguments


def filled(whole: Arguments, sizes: list[int]) -> Arguments:
    """The part that `sizes` fill, in the ordinary form, as leaves of its own."""
    sizes = [size for size in sizes if size]
    part = {name: value.detach() for name, value in whole.items()}
    part["input_rows"] = part["input_rows"][: sum(sizes)]
    part |= {name: part[name][: sizes[0]] for name in ("hx", "cx")}
    part |= {name: part[name].clone().requires_grad_() for name in NAMES}
    return {**part, "batch_sizes": torch.tensor(sizes)}


LENGTHS = [[8, 8, 5, 3, 1, 0], [8, 1, 1, 1, 1, 1], [5, 5, 0, 0, 0, 0], [0] * 6, [8] * 6]


@pytest.mark.usefixtures("tf32_allowed")
@PERSISTENT
def test_one_graph_serves_any_lengths(persistent: Call, dtype: torch.dtype) -> None:
    """Captured once, forward and backward, and replayed with batch_sizes written anew."""
    whole = with_capacity(8, 48, 6, dtype)
    leaves = [whole[name] for name in NAMES]
    weights = [torch.randn_like(out) for out in persistent(whole, capacity=True)]

    def step() -> list[Tensor]:
        outputs = persistent(whole, capacity=True)
        found = [*outputs, *torch.autograd.grad(outputs, leaves, weights)]
        return [value.detach() for value in found]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for sizes in [*LENGTHS, *reversed(LENGTHS)]:
        whole["batch_sizes"].copy_(torch.tensor(sizes))
        graph.replay()
        torch.cuda.synchronize()
        for mine, eager in zip(captured, step(), strict=True):
            torch.testing.assert_close(mine, eager)
        tokens, batch = sum(sizes), sizes[0]
        assert not captured[0][tokens:].any()
        assert torch.equal(captured[1][batch:], whole["hx"][batch:])
        if tokens:
            part = filled(whole, sizes)
            outputs = persistent(part)
            rows = (tokens, batch, batch)
            wanted = [
                *outputs,
                *torch.autograd.grad(
                    outputs,
                    [part[name] for name in NAMES],
                    [weight[:count] for weight, count in zip(weights, rows, strict=True)],
                ),
            ]
            for mine, fresh in zip(captured, wanted, strict=True):
                torch.testing.assert_close(mine[: len(fresh)], fresh.detach())


def test_persistent_does_not_wait_for_the_gpu(persistent: Call) -> None:
    whole = with_capacity(8, 48, 6, torch.bfloat16)
    whole["batch_sizes"].copy_(torch.tensor(LENGTHS[0]))
    leaves = [whole[name] for name in NAMES]
    persistent(whole, capacity=True)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = persistent(whole, capacity=True)
        torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs])
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_two_streams_of_persistent_kernels_give_what_each_gives_alone(persistent: Call) -> None:
    """Launches that each fill the GPU wait for one another, they do not deadlock."""
    drawn = [
        draw([64] * 8 + [9, 2], hidden=512, dtype=torch.bfloat16, seed=seed) for seed in (1, 2)
    ]
    assert_streams_do_not_mix(persistent, drawn)


def test_arguments_of_persistent_kernels_may_begin_anywhere(persistent: Call) -> None:
    plain = draw([4, 3, 1], hidden=64, dtype=torch.bfloat16)
    expected = everything(persistent, plain)
    moved = {
        name: torch.cat([plain[name].detach().new_zeros(1), plain[name].detach().flatten()])[1:]
        .view(plain[name].shape)
        .requires_grad_()
        for name in NAMES
    }
    found = everything(persistent, {**moved, "batch_sizes": plain["batch_sizes"]})
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted)


def test_both_persistent_algorithms_agree() -> None:
    """To the rounding of what they exchange: they accumulate in another order."""
    arguments = draw([64] * 8 + [9, 2], hidden=256, dtype=torch.bfloat16)
    if not fits(arguments["weight_hh"], 64, Algorithm.cluster):
        pytest.skip("this GPU has no clusters")
    first, second = (everything(by(name), arguments) for name in ("persistent", "cluster"))
    assert_near(first, second, 4 * UNITS[torch.bfloat16])


def by(backend: str) -> Call:
    def run(x: Arguments) -> tuple[Tensor, ...]:
        weights = (x["weight_ih"], x["weight_hh"], x["bias_ih"], x["bias_hh"])
        return lstm_packed(
            x["input"], x["batch_sizes"], x["hx"], x["cx"], *weights, backend=backend
        )

    return run


def test_persistent_refuses_what_it_cannot_do() -> None:
    force = by("persistent")
    with pytest.raises(RuntimeError, match=r"H = 36 must be a multiple of 8"):
        force(draw([2, 1], hidden=36, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="takes float32"):
        force(draw([2, 1], hidden=16))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with pytest.raises(ConfigError, match="multiplies float32 as TF32"):
            force(draw([2, 1], hidden=16, dtype=torch.float32))
    finally:
        torch.set_float32_matmul_precision(before)


# -- several models --------------------------------------------------------------------------------

SHARED = ("batch_sizes", "input_rows")


def draw_models(count: int, sizes: list[int], **settings: Any) -> tuple[Arguments, list[Arguments]]:
    """Arguments of K models, with a leading K, and those of each."""
    models = [draw(sizes, seed=k, **settings) for k in range(count)]
    shared = {name: models[0][name] for name in SHARED if name in models[0]}
    stacked = {
        name: torch.stack([own[name].detach() for own in models]).requires_grad_() for name in NAMES
    }
    return {**stacked, **shared}, [{**own, **shared} for own in models]


def of_all(run: Callable[[Arguments], tuple[Tensor, ...]], x: Arguments) -> tuple[Tensor, ...]:
    """The call of one model under vmap: one call of the operator."""
    shared = {name: x[name] for name in SHARED if name in x}

    def own(*tensors: Tensor) -> tuple[Tensor, ...]:
        return run({**shared, **dict(zip(NAMES, tensors, strict=True))})

    found: tuple[Tensor, ...] = torch.vmap(own)(*(x[name] for name in NAMES))
    return found


def assert_each_near(
    run: Callable[[Arguments], tuple[Tensor, ...]],
    stacked: Arguments,
    models: list[Arguments],
    tolerance: float,
) -> None:
    """Outputs and gradients of each model against torch's LSTM in float64."""
    outputs = of_all(run, stacked)
    torch.manual_seed(0)
    weights = [torch.randn_like(out) for out in outputs]
    gradients = torch.autograd.grad(outputs, [stacked[name] for name in NAMES], weights)
    for k, own in enumerate(models):
        alone = exact(own)
        expected = torch_lstm(alone)
        of_own = [weight[k].double().cpu() for weight in weights]
        wanted = torch.autograd.grad(expected, [alone[name] for name in NAMES], of_own)
        for found, right in zip((*outputs, *gradients), (*expected, *wanted), strict=True):
            error = (found[k].detach().double().cpu() - right.detach()).abs().max()
            assert error <= tolerance * right.abs().max().clamp(min=1)


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("layout", ["ragged", "one token", "wide"])
def test_each_of_several_models_is_that_of_torch(layout: str, rows: int | None) -> None:
    stacked, models = draw_models(3, LAYOUTS[layout], hidden=33, rows=rows)
    assert_each_near(fused, stacked, models, 1e-10)


@pytest.mark.usefixtures("tf32_allowed")
@PERSISTENT
@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize(("count", "hidden"), [(2, 72), (3, 512), (11, 512), (40, 128)])
@pytest.mark.parametrize("layout", ["ragged", "wide"])
def test_persistent_takes_several_models(
    persistent: Call, layout: str, count: int, hidden: int, rows: int | None, dtype: torch.dtype
) -> None:
    """Also more of them than are co-resident."""
    stacked, models = draw_models(count, LAYOUTS[layout], hidden=hidden, rows=rows, dtype=dtype)
    assert_each_near(persistent, stacked, models, 8 * UNITS[dtype])


@pytest.mark.usefixtures("tf32_allowed")
@PERSISTENT
def test_one_graph_serves_several_models_and_any_lengths(
    persistent: Call, dtype: torch.dtype
) -> None:
    whole, _ = draw_models(3, [8] * 6, hidden=128, inputs=32, dtype=dtype, rows=6)
    whole["batch_sizes"] = torch.zeros(6, dtype=torch.int64, device="cuda")
    leaves = [whole[name] for name in NAMES]

    def call(x: Arguments) -> tuple[Tensor, ...]:
        return persistent(x, capacity=True)

    weights = [torch.randn_like(out) for out in of_all(call, whole)]

    def step() -> list[Tensor]:
        outputs = of_all(call, whole)
        found = [*outputs, *torch.autograd.grad(outputs, leaves, weights)]
        return [value.detach() for value in found]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for sizes in [*LENGTHS, *reversed(LENGTHS)]:
        whole["batch_sizes"].copy_(torch.tensor(sizes))
        graph.replay()
        torch.cuda.synchronize()
        for mine, eager in zip(captured, step(), strict=True):
            torch.testing.assert_close(mine, eager)


@pytest.mark.parametrize("backend", ["plain", "persistent"])
def test_what_is_not_a_number_stays_with_its_model(backend: str) -> None:
    stacked, _ = draw_models(3, [9, 4, 1], hidden=64, dtype=torch.bfloat16)
    expected = of_all(by(backend), stacked)
    with torch.no_grad():
        stacked["weight_hh"][1, 0, 0] = torch.nan
    found = of_all(by(backend), stacked)
    assert found[0][1].isnan().any()
    for mine, right in zip(found, expected, strict=True):
        assert torch.equal(mine[::2], right[::2])
