"""K models in one call of an operator: each as it is alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from captioner.ops import extension, linear_cross_entropy, lstm_packed, lstm_step
from captioner.ops.dropout import _drawn_on_device, dropout
from captioner.ops.extension import ABSENT
from captioner.ops.models import (
    Models,
    Rates,
    each_item,
    embedding,
    index_select,
    linear,
    placed,
    running_as_one,
)

K, E, H, V = 3, 4, 5, 23
FUSED = pytest.param("fused", marks=pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT)))
compiled = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
# Packed layouts, and the row that each token reads.
LAYOUTS = {
    "ragged": ([4, 4, 2, 1], None),
    "one step": ([5], None),
    "one sequence": ([1, 1, 1], None),
    "shared rows": ([3, 2, 2], [0, 1, 1, 2, 0, 1, 1]),
}


def draw(
    *shapes: Sequence[int], models: int = K, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    drawn = [torch.randn(models, *s, generator=generator, dtype=torch.float64) for s in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


def lstm_tensors(sizes: list[int], rows: int, models: int = K) -> list[Tensor]:
    state, gates = (sizes[0], H), 4 * H
    return draw((rows, E), state, state, (gates, E), (gates, H), (gates,), (gates,), models=models)


def check_as_alone(
    function: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor], tolerance: float
) -> None:
    """Results and gradients of all models in one call are those of each alone."""
    found = torch.vmap(function)(*tensors)
    weights = [torch.randn_like(x) for x in found]
    gradients = torch.autograd.grad(found, tensors, weights)
    for k in range(len(tensors[0])):
        own = [x[k].detach().requires_grad_() for x in tensors]
        expected = function(*own)
        wanted = torch.autograd.grad(expected, own, [w[k] for w in weights])
        pairs = zip((*found, *gradients), (*expected, *wanted), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one[k], other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["reference", FUSED])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_models_lstm_is_what_it_is_alone(layout: str, backend: str) -> None:
    sizes, index = LAYOUTS[layout]
    batch_sizes = torch.tensor(sizes)
    input_rows = None if index is None else torch.tensor(index)

    def run(input: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        given = {"input_rows": input_rows, "backend": backend}
        return lstm_packed(input, batch_sizes, *others, **given)  # type: ignore[arg-type]

    check_as_alone(run, lstm_tensors(sizes, sum(sizes) if index is None else 3), 1e-12)


@pytest.mark.parametrize("backend", ["reference", FUSED])
def test_each_models_step_is_what_it_is_alone(backend: str) -> None:
    """At words of its own."""
    rows = torch.tensor([[0, 2, 2], [1, 1, 0], [3, 0, 1]])
    tensors = [x.detach() for x in draw((4, 4 * H), (3, H), (3, H), (4 * H, H))]

    def run(*own: Tensor) -> tuple[Tensor, Tensor]:
        projection, hx, cx, weight_hh, words = own
        return lstm_step(projection, words, hx, cx, weight_hh, backend=backend)

    found = torch.vmap(run)(*tensors, rows)
    for k in range(K):
        for one, other in zip(found, run(*(x[k] for x in (*tensors, rows))), strict=True):
            torch.testing.assert_close(one[k], other, rtol=1e-12, atol=1e-12)
    same = torch.vmap(run, in_dims=(0, 0, 0, 0, None))(*tensors, rows[0])
    assert torch.equal(same[0][0], found[0][0])


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_each_type(dtype: torch.dtype) -> None:
    sizes = torch.tensor([3, 2, 1])
    tensors = [x.detach().to(dtype).requires_grad_() for x in lstm_tensors([3, 2, 1], 6)]

    def run(input: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        return lstm_packed(input, sizes, *others, backend="fused")

    check_as_alone(run, tensors, 1e-5 if dtype == torch.float32 else 2e-2)


@compiled
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_models_loss_is_what_it_is_alone(smoothing: float) -> None:
    targets = torch.randint(V, (9,), generator=torch.Generator().manual_seed(1))
    targets[4] = -100

    def run(*tensors: Tensor) -> tuple[Tensor]:
        given = {"label_smoothing": smoothing, "backend": "fused"}
        return (linear_cross_entropy(*tensors, targets, **given),)  # type: ignore[arg-type]

    tensors = draw((9, H), (V, H), (V,))
    check_as_alone(run, tensors, 1e-12)
    with torch.no_grad():
        losses = torch.vmap(run)(*tensors)[0]
    torch.testing.assert_close(losses, torch.vmap(run)(*tensors)[0])


@compiled
@pytest.mark.parametrize("name", ["lstm_packed", "lstm_packed_reference"])
def test_gradcheck_and_opcheck_of_the_lstm(name: str) -> None:
    operator = getattr(torch.ops.captioner, name).default
    sizes = torch.tensor([2, 1])
    input, *others = lstm_tensors([2, 1], 3, models=2)
    if name == "lstm_packed":  # takes seconds
        torch.library.opcheck(operator, (input, sizes, *others))
    few = [x[:, :, :2] if x.dim() == 3 else x for x in (input, *others[2:3])]
    small = [few[0], *others[:2], few[1], *others[3:]]
    small = [x.detach().requires_grad_() for x in small]
    assert torch.autograd.gradcheck(lambda x, *y: operator(x, sizes, *y)[:3], small)


@compiled
def test_opcheck_of_the_step() -> None:
    projection, hx, cx, weight_hh = (
        x.detach() for x in draw((4, 4 * H), (3, H), (3, H), (4 * H, H))
    )
    rows = torch.tensor([[0, 2, 2], [1, 1, 0], [3, 0, 1]])
    operator = torch.ops.captioner.lstm_step.default
    torch.library.opcheck(operator, (projection, rows, hx, cx, weight_hh))
    with pytest.raises(RuntimeError, match="from 0 to 3, got 4 for token 2"):
        operator(projection, rows + torch.tensor([0, 0, 2]), hx, cx, weight_hh)
    with pytest.raises(RuntimeError, match="rows must begin with K = 3 models as the weights do"):
        operator(projection, rows[:2], hx, cx, weight_hh)


@compiled
def test_gradcheck_and_opcheck_of_the_loss() -> None:
    tensors, targets = draw((4, 3), (5, 3), (5,), models=2), torch.tensor([0, 4, -100, 2])
    operator = torch.ops.captioner.linear_cross_entropy.default
    torch.library.opcheck(operator, (*tensors, targets, 0.1, True))
    assert torch.autograd.gradcheck(lambda *x: operator(*x, targets, 0.1, True)[0], tensors)


@compiled
def test_the_threads_and_the_others_change_no_bit() -> None:
    """Of one model among three, on one thread or two, or of that one by itself."""
    sizes, tensors = torch.tensor([4, 4, 2, 1]), lstm_tensors([4, 4, 2, 1], 11)
    before, found = torch.get_num_threads(), []
    for threads, last in ((1, 3), (2, 3), (2, 1)):
        torch.set_num_threads(threads)
        input, *others = (x[:last].detach().float().requires_grad_() for x in tensors)
        results = torch.ops.captioner.lstm_packed(input, sizes, *others)[:3]
        gradients = torch.autograd.grad([x.sum() for x in results], [input, *others])
        found.append([x[0] for x in (*results, *gradients)])
    torch.set_num_threads(before)
    for one, *rest in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in rest)


@compiled
def test_what_is_not_a_number_stays_with_its_model() -> None:
    sizes = torch.tensor([2, 1])
    input, *others = (x.detach() for x in lstm_tensors([2, 1], 3))
    expected = torch.ops.captioner.lstm_packed(input, sizes, *others)[0]
    input[1, 0, 0] = math.nan
    found = torch.ops.captioner.lstm_packed(input, sizes, *others)[0]
    assert found[1].isnan().any()
    assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
    hidden, weight, bias = (x.detach() for x in draw((3, H), (V, H), (V,)))
    weight[2, 0, 0] = math.nan
    losses = torch.ops.captioner.linear_cross_entropy(hidden, weight, bias, sizes.new_zeros(3))[0]
    assert losses.isnan().tolist() == [False, False, True]


def as_one(
    function: Callable[..., Tensor], generators: list[torch.Generator], *tensors: Tensor
) -> Tensor:
    def run(number: Tensor, *own: Tensor) -> Tensor:
        with running_as_one(Models(generators, number)):
            return function(*own)

    found: Tensor = torch.vmap(run)(torch.arange(len(generators)), *tensors)
    return found


def test_each_model_drops_what_it_would_drop_alone() -> None:
    rates = [0.0, 0.3, 0.7, 1.0]
    (rows,) = draw((6, 5), models=4)
    shared = rows[0].detach()
    new = [torch.Generator().manual_seed(k) for k in range(4)]
    dropped = as_one(lambda own: dropout(own, Rates(rates), True), new, rows)
    of_shared = as_one(lambda own: dropout(shared, Rates(rates), True), new, rows)
    for k, rate in enumerate(rates):
        torch.manual_seed(k)  # one that is alone draws from torch's own generator
        assert torch.equal(dropped[k], dropout(rows[k], rate, True))
        assert torch.equal(of_shared[k], dropout(shared, rate, True))
    (gradient,) = torch.autograd.grad(dropped.sum(), rows)
    torch.testing.assert_close(gradient * rows, dropped)
    assert torch.equal(as_one(lambda own: dropout(own, 0.5, False), new, rows), rows)


def test_on_a_gpu_each_model_draws_from_its_own_generator() -> None:
    """What a GPU's dropout multiplies by, drawn here by a CPU's generators."""
    rates, rows = (0.0, 0.25, 0.5, 1.0), torch.ones(1, 40, 50)

    def drawn(*seeds: int) -> Tensor:
        return _drawn_on_device(rows, rates, [torch.Generator().manual_seed(k) for k in seeds])

    first, second = drawn(1, 2, 3, 4), drawn(1, 2, 9, 4)
    assert first.shape == (4, 2000)
    for scale, rate in zip(first, rates, strict=True):
        kept = {0.0: {1.0}, 1.0: {0.0}}.get(rate, {0.0, 1 / (1 - rate) if rate < 1 else 0.0})
        assert set(scale.tolist()) == {float(torch.tensor(one)) for one in kept}
        assert float(scale.mean()) == pytest.approx(1 - (rate == 1), abs=0.1)
    same = [torch.equal(one, other) for one, other in zip(first, second, strict=True)]
    assert same == [True, True, False, True]


@compiled
def test_on_a_gpu_nothing_of_several_models_is_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one that is not there: a tensor left on the CPU cannot meet those on the device."""
    monkeypatch.setitem(extension.ABSENT_ON, "cuda", None)
    shapes = [(V, E), (E, E), (E,), (4 * H, E), (4 * H, H), (4 * H,), (4 * H,), (V, H), (V,)]
    with FakeTensorMode() as mode:
        given = [mode.from_tensor(x.detach()) for x in draw(*shapes, dtype=torch.bfloat16)]
        tensors = [x.to("cuda").requires_grad_() for x in given]
        ids, sizes = torch.tensor([3, 1, 2], device="cuda"), torch.tensor([2, 1], device="cuda")
        states = torch.zeros(2, H, dtype=torch.bfloat16, device="cuda")
        layer = nn.Linear(E, E)
        del layer.weight, layer.bias

        def run(table: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> Tensor:
            layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
            *of_lstm, words, biases = others
            rows = dropout(linear(embedding(ids, table), layer), Rates([0.2, 0.5, 0.0]), True)
            of_all = {"capacity": True, "backend": "persistent"}
            output, *_ = lstm_packed(rows, sizes, states, states, *of_lstm, **of_all)  # type: ignore[arg-type]
            return linear_cross_entropy(output, words, biases, ids, backend="persistent")

        losses = as_one(run, [torch.Generator() for _ in range(K)], *tensors)
    assert losses.shape == (K,) and losses.device.type == "cuda" and losses.requires_grad


def test_torchs_own_loss_of_several_models_is_that_of_each() -> None:
    """What computes the loss on a GPU."""
    targets = torch.tensor([0, 4, -100, 2, 1, 1])

    def run(*tensors: Tensor) -> tuple[Tensor]:
        return (linear_cross_entropy(*tensors, targets, label_smoothing=0.1, backend="torch"),)

    check_as_alone(run, draw((6, H), (V, H), (V,)), 1e-12)


def test_autocast_of_several_models_is_that_of_each() -> None:
    """As on a GPU: a linear layer, an LSTM and the loss, which round to bfloat16."""
    sizes, targets = torch.tensor([3, 2, 1]), torch.tensor([0, 4, 3, 2, 1, 1])
    state = (3, H)
    shapes = [(6, H), (E, H), (E,), state, state, (4 * H, E), (4 * H, H), (4 * H,), (4 * H,)]
    tensors = draw(*shapes, (V, H), (V,), dtype=torch.float32)

    def run(rows: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        *of_lstm, words, biases = others
        with torch.autocast("cpu", torch.bfloat16):
            embedded = nn.functional.linear(rows, weight, bias)
            output, hy, _ = lstm_packed(embedded, sizes, *of_lstm, backend="reference")
            assert output.dtype == torch.bfloat16
            return linear_cross_entropy(output, words, biases, targets, backend="torch"), hy

    check_as_alone(run, tensors, 6e-2)


def test_each_model_reads_its_own_words_and_its_own_layer() -> None:
    generators = [torch.Generator() for _ in range(K)]
    tables, weights, biases = draw((V, E), (H, E), (H,))
    ids = torch.tensor([3, 3, 0])
    found = as_one(lambda table: embedding(ids, table), generators, tables)
    assert torch.equal(found, tables[:, ids])
    layer = nn.Linear(E, H, dtype=torch.float64)
    rows = torch.randn(2, 3, E, dtype=torch.float64)

    def run(weight: Tensor, bias: Tensor) -> Tensor:
        layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
        return linear(rows, layer)

    del layer.weight, layer.bias
    found = as_one(run, generators, weights, biases)
    expected = [nn.functional.linear(rows, weights[k], biases[k]) for k in range(K)]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize(
    "moved",
    [
        lambda rows: index_select(rows, 1, torch.tensor([2, 0, 2])),
        lambda rows: placed(rows, torch.tensor([5, 0, 2, 3]), 7),
        lambda rows: each_item(lambda items: items.softmax(1).exp(), rows),
    ],
)
def test_each_models_rows_go_where_they_would_alone(moved: Callable[[Tensor], Tensor]) -> None:
    generators = [torch.Generator() for _ in range(K)]
    (rows,) = draw((4, 5))
    found = as_one(moved, generators, rows)
    expected = torch.stack([moved(own) for own in rows])
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad(x, rows, weights)[0] for x in (found, expected)]
    assert torch.equal(*gradients)


@compiled
def test_what_does_not_fit_is_named() -> None:
    sizes = torch.tensor([2, 1])
    tensors = [x.detach() for x in lstm_tensors([2, 1], 3)]
    operator = torch.ops.captioner.lstm_packed
    other = [*tensors[:5], tensors[5][:2], tensors[6]]
    with pytest.raises(
        RuntimeError, match="bias_ih must begin with K = 3 models as the weights do, got 2"
    ):
        operator(other[0], sizes, *other[1:])
    with pytest.raises(RuntimeError, match="K must be at least 1"):
        operator(tensors[0][:0], sizes, *(x[:0] for x in tensors[1:]))
    with pytest.raises(RuntimeError, match="capacity must be false for K models"):
        operator(tensors[0], sizes, *tensors[1:], None, True)
    rows = torch.zeros(K, 3, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match="input_rows must be the same for all models"):
        torch.vmap(lambda x, index, *y: operator(x, sizes, *y, index))(
            tensors[0], rows, *tensors[1:]
        )
