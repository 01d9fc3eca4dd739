"""Captions drawn as Flickr8k's, and the batches that suite=lstm runs on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.captions import (
    LONGEST,
    READ_FIRST,
    WORDS,
    caption_lengths,
    steps_of_sequences,
    word_ranks,
)
from benchmarks.lstm_implementations import Cell, make_case
from captioner.errors import DataError

CPU = torch.device("cpu")


def test_drawn_captions_are_as_long_as_flickr8ks() -> None:
    lengths = caption_lengths(30_000, seed=1)
    assert lengths.mean() == pytest.approx(10.8, abs=0.1)
    assert np.percentile(lengths, 99) == pytest.approx(22, abs=1)
    assert lengths.max() == 37


def test_drawn_words_follow_zipf() -> None:
    counts = np.bincount(word_ranks(100_000, seed=0), minlength=WORDS)
    assert len(counts) == WORDS
    assert counts[0] / counts[27] == pytest.approx((27 + 2.7) / 2.7, rel=0.1)


def test_distributions_of_lengths() -> None:
    assert set(steps_of_sequences("equal", 5, seed=0)) == {13}
    assert sorted(steps_of_sequences("outlier", 4, seed=0)) == [8, 8, 8, 64]
    drawn = steps_of_sequences("flickr8k", 200, seed=0)
    assert len(drawn) == 200 and len(set(drawn)) > 10
    assert drawn.max() <= LONGEST + READ_FIRST
    assert (drawn != steps_of_sequences("flickr8k", 200, seed=1)).any()


def test_real_captions_lengths(flickr8k: Path) -> None:
    steps = steps_of_sequences("flickr8k", 2000, seed=0, data_root=str(flickr8k))
    assert steps.mean() == pytest.approx(10.8 + READ_FIRST, abs=0.5)
    with pytest.raises(DataError, match="30001 are wanted"):
        steps_of_sequences("flickr8k", 30_001, seed=0, data_root=str(flickr8k))


@pytest.mark.parametrize("lengths", ["flickr8k", "equal", "outlier"])
def test_a_case_reads_each_image_once_and_words_again(lengths: str) -> None:
    case = make_case(Cell(lengths, "float64", 6, 40), device=CPU, seed=0)
    batch_sizes = case.batch_sizes.tolist()
    assert batch_sizes[0] == 40 and batch_sizes == sorted(batch_sizes, reverse=True)
    assert sum(batch_sizes) == len(case.input_rows) == len(case.grad_output)
    images, begins, words = case.input_rows.split([40, batch_sizes[1], sum(batch_sizes) - 40 - 40])
    assert len(set(images.tolist())) == 40
    assert len(set(begins.tolist())) == 1
    assert len(set(words.tolist())) < len(words)
    assert len(set(case.input_rows.tolist())) == len(case.table)
    assert torch.equal(case.rows, case.table[case.input_rows])


def test_a_case_is_drawn_from_its_seed_alone() -> None:
    cell = Cell("flickr8k", "float32", 4, 3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = make_case(cell, device=CPU, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = (make_case(cell, device=CPU, seed=seed) for seed in (0, 1))
    assert torch.equal(first.table, again.table)
    assert torch.equal(first.layer.weight_hh_l0, again.layer.weight_hh_l0)
    assert not torch.equal(first.table[:5], other.table[:5])
