"""The flat token store against torch's own pack_sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from captioner.data.packed import CaptionBatch, TokenStore

BOS, EOS = 1, 2
CAPTIONS = st.lists(st.lists(st.integers(3, 20), max_size=6), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(captions=CAPTIONS, data=st.data())
def test_pack_is_pack_sequence_of_the_framed_captions(
    captions: list[list[int]], data: st.DataObject
) -> None:
    store = TokenStore(captions, bos=BOS, eos=EOS)
    rows = torch.tensor(
        data.draw(st.lists(st.integers(0, len(captions) - 1), min_size=1, max_size=10))
    )
    tokens, order = store.pack(rows)
    framed = [torch.tensor([BOS, *captions[row], EOS]) for row in rows.tolist()]
    inputs = pack_sequence([x[:-1] for x in framed], enforce_sorted=False)
    # torch sorts unstably; the same order is asked of it by sorting first.
    ordered = [torch.tensor([BOS, *captions[row], EOS]) for row in order.tolist()]
    assert sorted(order.tolist()) == sorted(rows.tolist())
    assert torch.equal(tokens.inputs, pack_sequence([x[:-1] for x in ordered]).data)
    assert torch.equal(tokens.targets, pack_sequence([x[1:] for x in ordered]).data)
    assert torch.equal(tokens.batch_sizes, inputs.batch_sizes)
    assert {x.dtype for x in (tokens.inputs, tokens.targets, tokens.batch_sizes)} == {torch.int64}


def test_a_batch_written_out() -> None:
    store = TokenStore([[5], [6, 7, 8], [9]], bos=BOS, eos=EOS)
    tokens, order = store.pack(torch.tensor([0, 1, 2]))
    assert order.tolist() == [1, 0, 2]
    assert tokens.inputs.tolist() == [1, 1, 1, 6, 5, 9, 7, 8]
    assert tokens.targets.tolist() == [6, 5, 9, 7, 2, 2, 8, 2]
    assert tokens.batch_sizes.tolist() == [3, 3, 1, 1]


def test_captions_of_equal_length_keep_their_order() -> None:
    store = TokenStore([[4], [5], [6], [7]], bos=BOS, eos=EOS)
    assert store.pack(torch.tensor([2, 0, 3, 1]))[1].tolist() == [2, 0, 3, 1]


def test_a_store_knows_its_lengths() -> None:
    store = TokenStore([[4, 5], [], [6]], bos=BOS, eos=EOS)
    assert len(store) == 3
    assert store.lengths.tolist() == [3, 1, 2]
    assert len(TokenStore([], bos=BOS, eos=EOS)) == 0


def make_batch() -> CaptionBatch:
    tokens, order = TokenStore([[4, 5], [6]], bos=BOS, eos=EOS).pack(torch.arange(2))
    return CaptionBatch(torch.randn(2, 1, 3), order, tokens)


def test_a_batch_moves_as_a_whole_but_for_its_batch_sizes() -> None:
    batch = make_batch().to(torch.device("meta"))
    images, image_rows, inputs, batch_sizes = batch.model_inputs
    moved = (images, image_rows, inputs, batch.targets)
    assert {x.device.type for x in moved} == {"meta"}
    assert batch_sizes.device.type == "cpu"


def test_a_batch_hands_out_what_a_model_and_a_loss_take() -> None:
    batch = make_batch()
    expected: tuple[Tensor, ...] = (
        batch.images, batch.image_rows, batch.tokens.inputs, batch.tokens.batch_sizes,
    )  # fmt: skip
    assert all(a is b for a, b in zip(batch.model_inputs, expected, strict=True))
    assert batch.targets is batch.tokens.targets


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_a_batch_can_be_page_locked() -> None:
    batch = make_batch().pin_memory()
    assert batch.images.is_pinned() and batch.tokens.inputs.is_pinned()
