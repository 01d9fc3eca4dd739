"""The loss counts real tokens only, and every one of them once."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from captioner.training.loss import packed_cross_entropy


def test_it_is_the_sum_over_captions_computed_one_by_one() -> None:
    lengths, vocabulary = [5, 2, 2, 1], 6
    logits = [torch.randn(n, vocabulary, dtype=torch.float64) for n in lengths]
    targets = [torch.randint(vocabulary, (n,)) for n in lengths]
    expected = sum(
        -float(scores.log_softmax(-1)[step, target])
        for scores, words in zip(logits, targets, strict=True)
        for step, target in enumerate(words)
    )
    loss = packed_cross_entropy(pack_sequence(logits).data, pack_sequence(targets).data)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_token_zero_is_a_token_like_any_other() -> None:
    """No index is ignored: there is no padding to leave out."""
    loss = packed_cross_entropy(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    assert float(loss) == pytest.approx(3 * torch.log(torch.tensor(4.0)).item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_moves_a_share_evenly_over_the_vocabulary(smoothing: float) -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    targets = torch.tensor([0, 3, 1, 1, 2])
    wanted = torch.full((5, 4), smoothing / 4, dtype=torch.float64)
    wanted[torch.arange(5), targets] += 1 - smoothing
    expected = -(wanted * logits.log_softmax(-1)).sum()
    loss = packed_cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(4000, 3).to(dtype)
    targets = torch.randint(3, (4000,))
    loss = packed_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), packed_cross_entropy(logits.double(), targets), rtol=1e-5, atol=0
    )
