"""The drop-in against torch.nn.LSTM: weights exchanged, every form of input, every argument."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from captioner.models.lstm import LSTM, LSTMCell, reversed_rows
from captioner.ops.extension import ABSENT

BACKENDS = ("reference", "torch", *(() if ABSENT else ("fused",)))


def twins(*arguments: Any, backend: str = "auto", **settings: Any) -> tuple[LSTM, nn.LSTM]:
    """Both modules in float64 with the same weights, exchanged through state_dict."""
    theirs = nn.LSTM(*arguments, **settings).double()
    mine = LSTM(*arguments, backend=backend, **settings).double()
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def sequences(lengths: list[int], size: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, size, generator=generator, dtype=torch.float64) for n in lengths]


def states(module: nn.LSTM, batch: int | None) -> tuple[Tensor, Tensor]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    shape = (rows, module.hidden_size) if batch is None else (rows, batch, module.hidden_size)
    return tuple(torch.randn(shape, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def tensors(result: tuple[Any, tuple[Tensor, Tensor]]) -> list[Tensor]:
    output, (hy, cy) = result
    return [output.data if isinstance(output, PackedSequence) else output, hy, cy]


def assert_same(mine: nn.Module, theirs: nn.Module, build: Any) -> None:
    """`build(leaves)` makes the arguments of a call; results and all gradients must agree."""
    found = []
    for module in (mine, theirs):
        leaves: list[Tensor] = []
        module.zero_grad()
        results = tensors(module(*build(leaves)))
        weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in results]
        sum((x * w).sum() for x, w in zip(results, weights, strict=True)).backward()
        parameters = {name: p.grad for name, p in module.named_parameters()}
        found.append((results, [x.grad for x in leaves], parameters))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def leaf(tensor: Tensor, leaves: list[Tensor]) -> Tensor:
    leaves.append(tensor.detach().clone().requires_grad_())
    return leaves[-1]


def packed_call(data: list[Tensor], state: tuple[Tensor, Tensor] | None) -> Any:
    def build(leaves: list[Tensor]) -> tuple[Any, ...]:
        packed = pack_sequence([leaf(x, leaves) for x in data], enforce_sorted=False)
        return (packed,) if state is None else (packed, tuple(leaf(x, leaves) for x in state))

    return build


def padded_call(data: Tensor, state: tuple[Tensor, Tensor] | None) -> Any:
    def build(leaves: list[Tensor]) -> tuple[Any, ...]:
        first = leaf(data, leaves)
        return (first,) if state is None else (first, tuple(leaf(x, leaves) for x in state))

    return build


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    input_size=st.integers(1, 4),
    hidden_size=st.integers(1, 4),
    num_layers=st.integers(1, 3),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    with_state=st.booleans(),
    backend=st.sampled_from(BACKENDS),
)
def test_ragged_batches_give_what_torch_gives(
    lengths: list[int],
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    with_state: bool,
    backend: str,
) -> None:
    mine, theirs = twins(
        input_size, hidden_size, num_layers, bias=bias, bidirectional=bidirectional, backend=backend
    )
    state = states(theirs, len(lengths)) if with_state else None
    assert_same(mine, theirs, packed_call(sequences(lengths, input_size), state))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    steps=st.integers(1, 5),
    batch=st.none() | st.integers(1, 4),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    with_state=st.booleans(),
    backend=st.sampled_from(BACKENDS),
)
def test_padded_and_unbatched_input_give_what_torch_gives(
    steps: int,
    batch: int | None,
    batch_first: bool,
    bidirectional: bool,
    with_state: bool,
    backend: str,
) -> None:
    mine, theirs = twins(
        3, 2, 2, batch_first=batch_first, bidirectional=bidirectional, backend=backend
    )
    shape = (steps,) if batch is None else (batch, steps) if batch_first else (steps, batch)
    data = torch.randn(*shape, 3, dtype=torch.float64)
    state = states(theirs, batch) if with_state else None
    assert_same(mine, theirs, padded_call(data, state))


@pytest.mark.parametrize("lengths", [[1, 1, 1], [4, 4], [5], [1]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_edges_of_raggedness(lengths: list[int], backend: str) -> None:
    mine, theirs = twins(3, 2, bidirectional=True, backend=backend)
    assert_same(mine, theirs, packed_call(sequences(lengths, 3), states(theirs, len(lengths))))


def test_the_form_of_a_packed_sequence_is_kept() -> None:
    mine, theirs = twins(3, 2)
    packed = pack_sequence(sequences([2, 4, 1], 3), enforce_sorted=False)
    output, expected = mine(packed)[0], theirs(packed)[0]
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(output, name), getattr(expected, name))
    padded, lengths = pad_packed_sequence(output)
    assert lengths.tolist() == [2, 4, 1]
    torch.testing.assert_close(padded, pad_packed_sequence(expected)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_between_layers_draws_as_torch_draws(bidirectional: bool) -> None:
    mine, theirs = twins(3, 4, 3, dropout=0.5, bidirectional=bidirectional)
    packed = pack_sequence(sequences([5, 3, 3, 1], 3))
    drawn = []
    for module in (mine, theirs):
        torch.manual_seed(5)
        drawn.append(tensors(module(packed)))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-10, atol=1e-10)
    mine.eval(), theirs.eval()
    still = tensors(mine(packed))
    torch.testing.assert_close(still, tensors(theirs(packed)), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(still[0], drawn[0][0])


@pytest.mark.parametrize("bias", [False, True])
def test_weights_go_both_ways_by_state_dict(bias: bool) -> None:
    arguments = {"num_layers": 2, "bias": bias, "bidirectional": True}
    mine, theirs = LSTM(3, 2, **arguments), nn.LSTM(3, 2, **arguments)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    data = torch.randn(4, 2, 3)
    torch.testing.assert_close(mine(data), theirs(data))
    other = LSTM(3, 2, **arguments)
    other.load_state_dict(nn.LSTM(3, 2, **arguments).state_dict())


def test_the_same_seed_gives_the_same_initial_weights() -> None:
    torch.manual_seed(3)
    mine = LSTM(3, 2, 2, bidirectional=True, backend="reference").state_dict()
    torch.manual_seed(3)
    theirs = nn.LSTM(3, 2, 2, bidirectional=True).state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_copy_and_a_saved_module_compute_the_same() -> None:
    mine = LSTM(3, 2, backend="reference")
    data = torch.randn(4, 2, 3)
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(mine), torch.load(buffer, weights_only=False)):
        assert other.backend == "reference"
        assert torch.equal(other(data)[0], mine(data)[0])


def test_frozen_weights_still_pass_gradients_on() -> None:
    mine, theirs = twins(3, 2, 2)
    for module in (mine, theirs):
        module.requires_grad_(False)
        module.weight_hh_l1.requires_grad_()
    assert_same(mine, theirs, packed_call(sequences([3, 1], 3), None))
    assert mine.weight_ih_l0.grad is None


def test_autocast_gives_half_outputs_and_full_gradients() -> None:
    mine = LSTM(3, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        output, (hy, cy) = mine(torch.randn(5, 2, 3))
    assert {x.dtype for x in (output, hy, cy)} == {torch.bfloat16}
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mine.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2, 2, 3),), r"2 or 3 dimensions, got \[2, 2, 2, 3\]"),
        ((torch.zeros(4, 2, 5),), r"weight_ih must be \[4H, E\] = \[8, 5\], got \[8, 3\]"),
        ((torch.zeros(0, 2, 3),), r"a step and a sequence, got \[0, 2, 3\]"),
        ((torch.zeros(4, 0, 3),), r"a step and a sequence, got \[4, 0, 3\]"),
        (
            (torch.zeros(4, 2, 3), (torch.zeros(1, 3, 2), torch.zeros(1, 2, 2))),
            r"hx must be \[L \* D, B, H\] = \[1, 2, 2\], got \[1, 3, 2\]",
        ),
        (
            (torch.zeros(4, 2, 3), (torch.zeros(1, 2, 2), torch.zeros(2, 2, 2))),
            r"cx must be \[L \* D, B, H\] = \[1, 2, 2\], got \[2, 2, 2\]",
        ),
        (
            (torch.zeros(4, 2, 3, dtype=torch.float64),),
            "weight_ih must be torch.float64 as input is, got torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(3, 2)(*arguments)


def test_projections_are_refused() -> None:
    with pytest.raises(ValueError, match="proj_size must be 0, got 1"):
        LSTM(3, 2, proj_size=1)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_reversed_rows_read_each_sequence_backwards(lengths: list[int]) -> None:
    numbers = [100 * k + torch.arange(n) for k, n in enumerate(lengths)]
    packed = pack_sequence(numbers, enforce_sorted=False)
    backwards = pack_sequence([x.flip(0) for x in numbers], enforce_sorted=False)
    rows = reversed_rows(packed.batch_sizes)
    assert torch.equal(packed.data[rows], backwards.data)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_rows_give_what_rows_of_their_own_give(backend: str, bidirectional: bool) -> None:
    mine, _ = twins(3, 4, 2, bidirectional=bidirectional, backend=backend)
    words = torch.randn(5, 3, dtype=torch.float64)
    rows = torch.tensor([4, 0, 0, 2, 4, 4, 1, 0])
    sizes = torch.tensor([4, 3, 1])
    found = []
    for shared in (True, False):
        mine.zero_grad()
        table = words.clone().requires_grad_()
        data, index = (table, rows) if shared else (table[rows], None)
        output, state = mine.forward_packed(data, sizes, input_rows=index)
        (output.square().sum() + state[1].sum()).backward()
        found.append([output, *state, table.grad, *(p.grad for p in mine.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_from_projected_words_are_the_whole(backend: str, num_layers: int) -> None:
    mine, _ = twins(3, 4, num_layers, backend=backend)
    words = torch.randn(5, 3, dtype=torch.float64)
    rows = torch.tensor([[1, 2], [0, 0], [4, 1]])
    with torch.no_grad():
        expected, (hy, cy) = mine(words[rows])
        sums = mine.project(words)
        state = (torch.zeros_like(hy), torch.zeros_like(cy))
        for step, wanted in zip(rows, expected, strict=True):
            output, state = mine.step(sums, step, state)
            torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, (hy, cy), rtol=1e-10, atol=1e-10)


def test_a_bidirectional_lstm_has_no_steps() -> None:
    mine = LSTM(3, 2, bidirectional=True)
    with pytest.raises(ValueError, match="cannot go step by step"):
        mine.step(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), (torch.zeros(2, 1, 2),) * 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_is_torchs_cell(
    backend: str, with_state: bool, batch: int | None, bias: bool
) -> None:
    theirs = nn.LSTMCell(4, 5, bias=bias).double()
    mine = LSTMCell(4, 5, bias=bias, backend=backend).double()
    mine.load_state_dict(theirs.state_dict())
    shape = () if batch is None else (batch,)
    x = torch.randn(*shape, 4, dtype=torch.float64)
    state = tuple(torch.randn(*shape, 5, dtype=torch.float64) for _ in range(2))
    found = []
    for cell in (mine, theirs):
        leaf_x = x.clone().requires_grad_()
        h, c = cell(leaf_x, state if with_state else None)
        (h.square().sum() + c.sum()).backward()
        found.append([h, c, leaf_x.grad, *(p.grad for p in cell.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def test_a_cell_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"1 or 2 dimensions, got \[1, 1, 4\]"):
        LSTMCell(4, 5)(torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match=r"must have a sequence, got \[0, 4\]"):
        LSTMCell(4, 5)(torch.zeros(0, 4))
