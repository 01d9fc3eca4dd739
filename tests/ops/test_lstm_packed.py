"""The operator over packed rows, against torch.nn.LSTM, finite differences and itself.

Needs nothing but torch and pytest, so that it also runs on a bare machine with a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from captioner.errors import ConfigError
from captioner.ops import backend as backend_module
from captioner.ops import choose_backend, lstm_packed
from captioner.ops.extension import ABSENT

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FUSED = pytest.param("fused", marks=pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT)))
BACKENDS = ["reference", "torch", FUSED]
OURS = ["reference", FUSED]  # with an operator of their own
LAYOUTS = {
    "ragged": [4, 4, 2, 1, 1],
    "all of one length": [3, 3, 3],
    "one sequence": [1, 1, 1, 1],
    "one step": [5],
    "one token": [1],
    "long and thin": [2] + [1] * 30,
}
NAMES = ("input", "batch_sizes", "hx", "cx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
E, H = 3, 5
Arguments = dict[str, Tensor]


def draw(
    sizes: list[int],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
    requires_grad: bool = True,
    hidden: int = H,
) -> Arguments:
    """Random arguments of the operator, by name."""
    generator = torch.Generator().manual_seed(len(sizes))
    tokens, batch = sum(sizes), sizes[0]
    shapes = {
        "input": (tokens, E),
        "hx": (batch, hidden),
        "cx": (batch, hidden),
        "weight_ih": (4 * hidden, E),
        "weight_hh": (4 * hidden, hidden),
        "bias_ih": (4 * hidden,),
        "bias_hh": (4 * hidden,),
    }
    drawn = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_(requires_grad)
        for name, shape in shapes.items()
    }
    drawn["batch_sizes"] = torch.tensor(sizes)
    return {name: drawn[name] for name in NAMES}


def operator(backend: str) -> torch._ops.OpOverload:
    name = "lstm_packed" if backend == "fused" else "lstm_packed_reference"
    return getattr(torch.ops.captioner, name).default


def torch_lstm(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The same by torch.nn.LSTM, its graph leading back to the given weights."""
    weight_ih = arguments["weight_ih"]
    module = nn.LSTM(weight_ih.shape[1], weight_ih.shape[0] // 4).to(weight_ih)
    weights = {f"{name}_l0": arguments[name] for name in NAMES[4:]}
    packed = PackedSequence(arguments["input"], arguments["batch_sizes"])
    state = (arguments["hx"][None], arguments["cx"][None])
    output, (hy, cy) = torch.func.functional_call(module, weights, (packed, state))
    return output.data, hy[0], cy[0]


def gradients(outputs: tuple[Tensor, ...], arguments: Arguments) -> dict[str, Tensor]:
    """Gradients of a fixed random weighting of all outputs."""
    generator = torch.Generator().manual_seed(7)
    weighted = [
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum()
        for out in outputs
    ]
    wanted = {name: x for name, x in arguments.items() if x.requires_grad}
    found = torch.autograd.grad(torch.stack(weighted).sum(), list(wanted.values()))
    return dict(zip(wanted, found, strict=True))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients_are_those_of_torch(layout: str, backend: str, device: str) -> None:
    arguments = draw(LAYOUTS[layout], device=device)
    expected = torch_lstm(arguments)
    actual = lstm_packed(**arguments, backend=backend)
    for mine, theirs in zip(actual, expected, strict=True):
        assert_close(mine, theirs)
    wanted = gradients(expected, arguments)
    for name, gradient in gradients(actual, arguments).items():
        assert_close(gradient, wanted[name])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_output_alone_carries_gradients(which: int, backend: str, device: str) -> None:
    """The gradients of the unused outputs are absent, and that of a sum is an expanded scalar."""
    arguments = draw([3, 2, 1], device=device)
    wanted = {name: x for name, x in arguments.items() if x.requires_grad}
    found = torch.autograd.grad(
        lstm_packed(**arguments, backend=backend)[which].sum(), list(wanted.values())
    )
    expected = torch.autograd.grad(torch_lstm(arguments)[which].sum(), list(wanted.values()))
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize("sizes", [[3, 2, 1], [1], [2, 2]])
def test_gradients_are_those_of_finite_differences(
    sizes: list[int], backend: str, device: str
) -> None:
    arguments = draw(sizes, device=device, hidden=2)

    def run(*floats: Tensor) -> tuple[Tensor, ...]:
        return lstm_packed(floats[0], arguments["batch_sizes"], *floats[1:], backend=backend)

    inputs = tuple(x for name, x in arguments.items() if name != "batch_sizes")
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize("sizes", [[3, 2, 2, 1], [2], [1, 1]])
def test_opcheck_of_the_operator(sizes: list[int], backend: str, strided: bool) -> None:
    arguments = draw(sizes)
    if strided:
        arguments["hx"] = arguments["hx"].detach().t().contiguous().t().requires_grad_()
        arguments["cx"] = arguments["cx"].detach().t().contiguous().t().requires_grad_()
    torch.library.opcheck(operator(backend), tuple(arguments.values()))


@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize("rows", [None, [0, 2, 2, 1, 0, 0, 1, 2]])
def test_opcheck_of_the_backward_operator(backend: str, rows: list[int] | None) -> None:
    arguments = draw([3, 2, 2, 1], requires_grad=False)
    input_rows = None if rows is None else torch.tensor(rows)
    if rows is not None:
        arguments["input"] = arguments["input"][:3]
    output, hy, cy, workspace = operator(backend)(*arguments.values(), input_rows)
    saved = [x for name, x in arguments.items() if not name.startswith("bias")]
    strided = torch.randn_like(hy).t().contiguous().t()
    backward = operator(backend)._schema.name.split("::")[1] + "_backward"
    gradients = (torch.randn_like(output), strided, torch.randn_like(cy))
    torch.library.opcheck(
        getattr(torch.ops.captioner, backward).default,
        (*gradients, *saved, output, workspace, input_rows),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@pytest.mark.parametrize("backend", OURS)
def test_double_backward_is_refused_aloud(backend: str) -> None:
    arguments = draw([2, 1])
    output = lstm_packed(**arguments, backend=backend)[0]
    (first,) = torch.autograd.grad(output.square().sum(), arguments["input"], create_graph=True)
    with pytest.raises(NotImplementedError, match="lstm_packed has no second derivative"):
        torch.autograd.grad(first.sum(), arguments["input"])


REFUSALS = {
    "input of 3 dimensions": ("input", torch.zeros(6, 1, E), r"input must be \[U, E\], got"),
    "hx of another batch": (
        "hx",
        torch.zeros(2, H),
        r"hx must be \[B, H\] = \[3, 5\], got \[2, 5\]",
    ),
    "cx of another size": (
        "cx",
        torch.zeros(3, 4),
        r"cx must be \[B, H\] = \[3, 5\], got \[3, 4\]",
    ),
    "weight_ih of another input": (
        "weight_ih",
        torch.zeros(4 * H, 2),
        r"weight_ih must be \[4H, E\] = \[20, 3\], got",
    ),
    "weight_hh not of 4H rows": (
        "weight_hh",
        torch.zeros(3 * H, H),
        r"weight_hh must be \[4H, H\], got \[15, 5\]",
    ),
    "bias too short": ("bias_hh", torch.zeros(H), r"bias_hh must be \[4H\] = \[20\], got \[5\]"),
    "another type": (
        "cx",
        torch.zeros(3, H, dtype=torch.float64),
        "cx must be .*float32 .* got .*float64",
    ),
    "input of whole numbers": (
        "input",
        torch.zeros(6, E, dtype=torch.int64),
        "floating type, got torch.int64",
    ),
    "another device": (
        "bias_ih",
        torch.zeros(4 * H, device="meta"),
        "bias_ih must be on cpu .* got meta",
    ),
    "batch sizes that grow": ("batch_sizes", torch.tensor([1, 2, 3]), r"increase, got \[1, 2, 3\]"),
    "a batch size of zero": ("batch_sizes", torch.tensor([3, 3, 0]), "must be positive"),
    "batch sizes of fewer tokens": ("batch_sizes", torch.tensor([3, 2]), "sum to N = 6, got 5"),
    "no batch sizes": ("batch_sizes", torch.tensor([], dtype=torch.int64), "T >= 1, got"),
    "batch sizes of int32": (
        "batch_sizes",
        torch.tensor([3, 2, 1], dtype=torch.int32),
        "int64 .* torch.int32",
    ),
    "batch sizes elsewhere": (
        "batch_sizes",
        torch.tensor([3, 2, 1], device="meta"),
        "on the CPU, got meta",
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_arguments_are_refused_naming_found_and_expected(case: str, backend: str) -> None:
    name, wrong, message = REFUSALS[case]
    arguments = draw([3, 2, 1], dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        lstm_packed(**{**arguments, name: wrong}, backend=backend)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batch_sizes_on_the_gpu_are_refused() -> None:
    arguments = draw([3, 2, 1], device="cuda")
    with pytest.raises(ValueError, match="batch_sizes must be on the CPU, got cuda"):
        lstm_packed(**{**arguments, "batch_sizes": arguments["batch_sizes"].cuda()})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_repeats_are_bit_identical(backend: str, device: str) -> None:
    arguments = draw([6, 5, 5, 2, 1], device=device, dtype=torch.float32, hidden=16)
    runs = []
    for _ in range(3):
        outputs = lstm_packed(**arguments, backend=backend)
        runs.append([*outputs, *gradients(outputs, arguments).values()])
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("backend", "units"),
    [("reference", 8), pytest.param("fused", 8, marks=FUSED.marks), ("torch", 32)],
)
def test_bfloat16_stays_near_float64(backend: str, units: int, device: str) -> None:
    """bfloat16 has 8 bits: a unit in the last place is 2^-8 of the largest figure.

    The products round once a step and the errors of 5 steps add up: 8 such units suffice where
    gates and cells are float32. ATen rounds those too and gets four times as much.
    """
    half = draw(LAYOUTS["ragged"], device=device, dtype=torch.bfloat16)
    exact = {
        name: x if name == "batch_sizes" else x.detach().double().requires_grad_()
        for name, x in half.items()
    }
    outputs, expected = lstm_packed(**half, backend=backend), torch_lstm(exact)
    wanted = gradients(expected, exact)
    pairs = [*zip(outputs, expected, strict=True)]
    pairs += [(found, wanted[name]) for name, found in gradients(outputs, half).items()]
    for mine, theirs in pairs:
        assert mine.dtype == torch.bfloat16
        error = (mine.double() - theirs).abs().max()
        assert error <= units * 2**-8 * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_its_type_and_gives_float32_gradients(
    backend: str, device: str
) -> None:
    arguments = draw(LAYOUTS["ragged"], device=device, dtype=torch.float32)
    with torch.autocast(device, torch.bfloat16):
        outputs = lstm_packed(**arguments, backend=backend)
    by_hand = lstm_packed(
        *(x if x.dtype == torch.int64 else x.bfloat16() for x in arguments.values()),
        backend=backend,
    )
    for mine, theirs in zip(outputs, by_hand, strict=True):
        assert mine.dtype == torch.bfloat16
        assert torch.equal(mine, theirs)
    assert all(g.dtype == torch.float32 for g in gradients(outputs, arguments).values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_takes_mixed_half_types_and_leaves_float64(backend: str) -> None:
    mixed = draw([2, 1], dtype=torch.float32)
    mixed["input"] = mixed["input"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert lstm_packed(**mixed, backend=backend)[0].dtype == torch.bfloat16
        double = draw([2, 1])
        assert_close(lstm_packed(**double, backend=backend)[0], torch_lstm(double)[0])
        with pytest.raises(ValueError, match=r"hx must be torch\.float64 as input is, got"):
            lstm_packed(**{**mixed, "input": double["input"]}, backend=backend)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_expanded_arguments_give_the_same(backend: str, device: str) -> None:
    arguments = draw([3, 2, 2, 1], device=device)
    arguments["hx"] = arguments["hx"].detach()[:1].expand(3, H).requires_grad_()
    plain = {name: x.detach().clone().contiguous() for name, x in arguments.items()}
    for name in ("input", "cx", "weight_ih", "weight_hh"):
        arguments[name] = plain[name].t().contiguous().t().requires_grad_()
    wide = torch.zeros(4 * H, 2, dtype=torch.float64, device=device)
    wide[:, 0] = plain["bias_ih"]
    arguments["bias_ih"] = wide[:, 0].requires_grad_()
    assert not arguments["input"].is_contiguous()
    expected = {n: x if n == "batch_sizes" else x.requires_grad_() for n, x in plain.items()}
    outputs, wanted = lstm_packed(**arguments, backend=backend), torch_lstm(expected)
    for mine, theirs in zip(outputs, wanted, strict=True):
        assert_close(mine, theirs)
    by_name = gradients(wanted, expected)
    for name, gradient in gradients(outputs, arguments).items():
        assert_close(gradient, by_name[name])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "batch_sizes"])
def test_one_argument_alone_may_want_a_gradient(name: str, backend: str, device: str) -> None:
    everything = draw([3, 2, 1], device=device)
    expected = gradients(torch_lstm(everything), everything)[name]
    alone = {n: x.detach() for n, x in everything.items()}
    alone[name].requires_grad_()
    assert_close(gradients(lstm_packed(**alone, backend=backend), alone)[name], expected)


@pytest.mark.parametrize("backend", OURS)
def test_arguments_are_not_changed_and_outputs_share_no_memory(backend: str) -> None:
    arguments = draw([3, 2, 1])
    before = {name: x.detach().clone() for name, x in arguments.items()}
    outputs = lstm_packed(**arguments, backend=backend)
    torch.stack([x.sum() for x in outputs]).sum().backward()
    assert all(torch.equal(before[name], x) for name, x in arguments.items())
    biases = torch.autograd.grad(
        lstm_packed(**arguments, backend=backend)[0].sum(),
        (arguments["bias_ih"], arguments["bias_hh"]),
    )
    memory = [x.data_ptr() for x in (*outputs, arguments["hx"], arguments["cx"], *biases)]
    assert len(set(memory)) == len(memory)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("backend", ["auto", *OURS])
def test_compiled_as_one_graph_gives_the_same(backend: str) -> None:
    def run(*arguments: Tensor) -> Tensor:
        output, hy, cy = lstm_packed(*arguments, backend=backend)
        return (output * 2).square().sum() + hy.sum() * cy.sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for sizes in ([3, 2, 1], [4, 4]):
        eager, twin = draw(sizes), draw(sizes)
        expected, actual = run(*eager.values()), compiled(*twin.values())
        assert_close(actual, expected)
        wanted = gradients((expected,), eager)
        for name, gradient in gradients((actual,), twin).items():
            assert_close(gradient, wanted[name])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_still_refuses_batch_sizes_of_another_sum() -> None:
    compiled = torch.compile(lambda *x: lstm_packed(*x)[0], backend="eager", fullgraph=True)
    arguments = {**draw([3, 2, 1]), "batch_sizes": torch.tensor([3, 2])}
    with pytest.raises((ValueError, RuntimeError), match="sum to N = 6"):
        compiled(*arguments.values())


def test_an_unknown_or_missing_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown LSTM backend 'cudnn'; there are auto, ref"):
        choose_backend("cudnn", "cpu")
    with pytest.raises(ConfigError, match="'fused' cannot run: the extension"):
        choose_backend("fused", "meta")


def test_the_automatic_choice_is_said_once_and_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend_module._automatic.cache_clear()
    monkeypatch.delenv("CAPTIONER_LSTM", raising=False)
    with caplog.at_level(logging.INFO, logger="captioner"):
        default = choose_backend("auto", "cpu")
        choose_backend("auto", "cpu")
    assert len(caplog.records) == 1
    assert f"LSTM backend on cpu: {default} (" in caplog.text
    monkeypatch.setenv("CAPTIONER_LSTM", "torch")
    assert choose_backend("auto", "cpu") == "torch"
    assert choose_backend("reference", "cpu") == "reference"
    monkeypatch.setenv("CAPTIONER_LSTM", "quick")
    with pytest.raises(ConfigError, match="unknown LSTM backend 'quick'"):
        choose_backend("auto", "cpu")
