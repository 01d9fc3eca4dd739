"""The capacity form: static shapes of which a batch fills a part.

The filled part must be that of the ordinary form, the rest is as it was or 0.

Shapes: B sequences and N packed tokens as capacities, E input size, H hidden size.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captioner.ops import linear_cross_entropy, lstm_packed
from captioner.ops.extension import ABSENT
from captioner.ops.linear_cross_entropy import IGNORED
from captioner.ops.packing import packed_places

FUSED = pytest.param("fused", marks=pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT)))
OURS = ["reference", FUSED]
BACKENDS = [*OURS, "torch"]
CAPACITY, BATCH, E, H = 17, 5, 3, 4
LAYOUTS = {
    "full": [5, 5, 4, 2, 1],
    "steps without a sequence": [5, 3, 1, 0, 0, 0],
    "missing sequences": [3, 2, 2, 0],
    "one token": [1],
    "no sequence": [0, 0],
}
NAMES = ("input", "hx", "cx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
Arguments = dict[str, Tensor]


def draw(rows: int | None = None) -> Arguments:
    generator = torch.Generator().manual_seed(3)
    first = (CAPACITY if rows is None else rows, E)
    others = [(BATCH, H), (BATCH, H), (4 * H, E), (4 * H, H), (4 * H,), (4 * H,)]
    shapes: dict[str, tuple[int, ...]] = dict(zip(NAMES, (first, *others), strict=True))
    drawn = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    if rows is not None:
        drawn["input_rows"] = torch.randint(rows, (CAPACITY,), generator=generator)
    return drawn


def run(arguments: Arguments, sizes: list[int], backend: str) -> tuple[Tensor, ...]:
    positional = [arguments[name] for name in NAMES]
    return lstm_packed(
        *(positional[0], torch.tensor(sizes), *positional[1:]),
        input_rows=arguments.get("input_rows"),
        capacity=True,
        backend=backend,
    )


def expected(arguments: Arguments, sizes: list[int]) -> tuple[Tensor, ...]:
    """The filled part in the ordinary form, padded to the static shapes."""
    filled = [size for size in sizes if size]
    tokens, batch = sum(filled), max(filled, default=0)
    hx, cx = arguments["hx"], arguments["cx"]
    if not filled:
        return hx.new_zeros(CAPACITY, H), hx, cx
    rows, input_rows = arguments["input"], arguments.get("input_rows")
    output, hy, cy = lstm_packed(
        rows[:tokens] if input_rows is None else rows,
        *(torch.tensor(filled), hx[:batch], cx[:batch]),
        *(arguments[name] for name in NAMES[3:]),
        input_rows=None if input_rows is None else input_rows[:tokens],
        backend="reference",
    )
    return (
        torch.cat([output, output.new_zeros(CAPACITY - tokens, H)]),
        torch.cat([hy, hx[batch:]]),
        torch.cat([cy, cx[batch:]]),
    )


def gradients(outputs: tuple[Tensor, ...], arguments: Arguments) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    weighted = [
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum()
        for out in outputs
    ]
    leaves = [arguments[name] for name in NAMES]
    return list(
        torch.autograd.grad(
            torch.stack(weighted).sum(), leaves, allow_unused=True, materialize_grads=True
        )
    )


@pytest.mark.parametrize("rows", [None, 6])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_filled_part_is_that_of_the_ordinary_form(
    layout: str, backend: str, rows: int | None
) -> None:
    arguments, sizes = draw(rows), LAYOUTS[layout]
    found, wanted = run(arguments, sizes, backend), expected(arguments, sizes)
    kept = 3
    if backend == "torch":  # which does not tell the cells of a sequence that ends early
        kept, last = 2, sizes[-1]
        torch.testing.assert_close(found[2][:last], wanted[2][:last])
        assert found[2][last:].isnan().all()
    for mine, theirs in zip(found[:kept], wanted[:kept], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    pairs = zip(
        NAMES,
        gradients(found[:kept], arguments),
        gradients(wanted[:kept], arguments),
        strict=True,
    )
    for name, mine, theirs in pairs:
        torch.testing.assert_close(
            mine, theirs, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize("sizes", [[2, 1, 0], [3, 2, 2, 0], [0]])
def test_gradients_are_those_of_finite_differences(sizes: list[int], backend: str) -> None:
    arguments = draw()

    def call(*floats: Tensor) -> tuple[Tensor, ...]:
        return run(dict(zip(NAMES, floats, strict=True)), sizes, backend)

    assert torch.autograd.gradcheck(call, tuple(arguments[name] for name in NAMES))


@pytest.mark.parametrize("name", ["lstm_packed_reference", "lstm_packed"])
@pytest.mark.parametrize("rows", [None, 6])
def test_opcheck_of_the_operator(name: str, rows: int | None) -> None:
    if name == "lstm_packed" and ABSENT is not None:
        pytest.skip(ABSENT)
    arguments = draw(rows)
    positional = [arguments[x] for x in NAMES]
    call = (positional[0], torch.tensor([3, 1, 0]), *positional[1:], arguments.get("input_rows"))
    torch.library.opcheck(getattr(torch.ops.captioner, name).default, (*call, True))


@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([5, 5, 5, 5], "at most N = 17"),
        ([6, 1], "at most B = 5"),
        ([2, 3], "never increase"),
        ([2, -1], "not be negative"),
    ],
)
def test_what_exceeds_the_capacity_is_refused(sizes: list[int], message: str, backend: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        run(draw(), sizes, backend)


def test_batch_sizes_of_another_form_are_refused() -> None:
    positional = [draw()[name] for name in NAMES]
    with pytest.raises(ValueError, match=r"batch_sizes must be \[T\] of int64"):
        lstm_packed(positional[0], torch.tensor([2.0]), *positional[1:], capacity=True)


def test_places_of_packed_rows() -> None:
    step, sequence, filled = packed_places(torch.tensor([3, 2, 2, 0]), 9)
    assert step.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert sequence.tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 0]
    assert filled.tolist() == [True] * 7 + [False] * 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("backend", ["torch", FUSED])
def test_ignored_targets_count_for_nothing(backend: str, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((30, 6), (70, 6), (70,))
    )
    targets = torch.randint(70, (30,), generator=generator)
    kept = torch.rand(30, generator=generator) < 0.6
    call = {"label_smoothing": smoothing, "backend": backend}
    loss = linear_cross_entropy(hidden, weight, bias, torch.where(kept, targets, IGNORED), **call)
    wanted = linear_cross_entropy(hidden[kept], weight, bias, targets[kept], **call)
    torch.testing.assert_close(loss, wanted)
    leaves = (hidden, weight, bias)
    pairs = zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(wanted, leaves), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs)
