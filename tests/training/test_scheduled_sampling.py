"""Scheduled sampling: which words are replaced, and that a loop over single captions draws them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_models import BOS, EOS, IMAGE_OF, MODELS, F, V, make_batch, make_model
from torch import Tensor

from captioner.data.packed import CaptionBatch, PackedTokens
from captioner.models.captioner import Captioner
from captioner.models.language_model import LanguageModel
from captioner.models.word_layers import DropoutRates
from captioner.ops.packing import packed_places
from captioner.training.scheduled_sampling import SamplingSchedule, ScheduledSampling

SPECIAL = (0, BOS, EOS)


def pooled() -> Captioner:
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "embedding_dim": 10, "hidden_size": 12}
    return Captioner(language_model=LanguageModel(**sizes), feature_dim=F)


def model_of(name: str) -> Any:
    if name == "pooled":
        return pooled().double()
    dropped = {"region_dropout": 0.3, "weight_dropout": 0.3}  # none of which draws see
    return make_model(name, DropoutRates(input=0.3, output=0.3), dropped, scale=0.8).double()


def batch() -> CaptionBatch:
    images, rows, inputs, sizes, targets = make_batch(torch.float64)
    return CaptionBatch(images, rows, PackedTokens(inputs, targets, sizes))


def sampling(model: Any, probability: float) -> ScheduledSampling:
    return ScheduledSampling(model, probability=lambda: probability, banned=SPECIAL)


def by_caption(values: Tensor, sizes: Tensor) -> list[Tensor]:
    """Packed values [N] as a tensor for each caption."""
    _, sequence, _ = packed_places(sizes, len(values))
    return [values[sequence == k] for k in range(int(sizes[0]))]


@torch.no_grad()
def drawn_one_by_one(model: Any, given: CaptionBatch, chances: Tensor) -> list[list[int]]:
    """Every word but <bos> drawn, by a forward over the words before it: with feedback those that
    were drawn, otherwise those of the caption."""
    model.eval()
    found = []
    tokens = given.tokens
    for own, chance, row in zip(
        by_caption(tokens.inputs, tokens.batch_sizes),
        by_caption(chances, tokens.batch_sizes),
        given.image_rows,
        strict=True,
    ):
        words = [BOS]
        for place in range(1, len(own)):
            read = torch.tensor(words) if model.feedback else own[:place]
            ones = torch.ones(len(read), dtype=torch.int64)
            logits = model(given.images[row : row + 1], torch.tensor([0]), read, ones)[-1]
            weights = [
                0.0 if k in SPECIAL else float(x.exp()) for k, x in enumerate(logits.double())
            ]
            left, word = float(chance[place]) * sum(weights), 0
            while left >= weights[word]:
                left, word = left - weights[word], word + 1
            words.append(word)
        found.append(words)
    return found


@pytest.mark.parametrize("name", ["pooled", *MODELS])
def test_with_probability_1_all_words_are_those_of_a_plain_loop(name: str) -> None:
    model, given = model_of(name).train(), batch()
    torch.manual_seed(3)
    (found,) = sampling(model, 1.0)(given)
    torch.manual_seed(3)
    torch.rand(len(given.targets))  # which words are replaced
    chances = torch.rand(len(given.targets), dtype=torch.float64)
    assert model.training and found.targets is given.targets and found.images is given.images
    inputs = by_caption(found.tokens.inputs, found.tokens.batch_sizes)
    assert [x.tolist() for x in inputs] == drawn_one_by_one(model, given, chances)
    assert found.tokens.inputs.ne(given.tokens.inputs).sum() > 5


def test_the_share_of_words_that_are_replaced() -> None:
    given, asked = batch(), sampling(pooled().double(), 0.3)
    torch.manual_seed(0)
    changed = sum(asked(given)[0].tokens.inputs.ne(given.tokens.inputs) for _ in range(200))
    first = int(given.tokens.batch_sizes[0])
    assert not changed[:first].any() and changed[first:].all()
    replaced, words = asked.figures()["sampled_words"]
    assert words == 200 * (len(given.targets) - len(IMAGE_OF))
    deviation = (0.3 * 0.7 / words) ** 0.5
    assert abs(replaced / words - 0.3) < 4 * deviation
    assert int(changed.sum()) <= replaced  # a draw may be the caption's own word
    assert asked.figures()["sampled_words"] == (0, 0)


def test_with_probability_0_nothing_is_drawn_and_the_batch_stays() -> None:
    given, asked = batch(), sampling(pooled(), 0.0)
    before = torch.get_rng_state()
    assert asked(given)[0] is given
    assert torch.equal(torch.get_rng_state(), before)
    assert asked.figures()["sampled_words"][0] == 0


def test_the_probability_grows_from_its_start_to_its_ceiling() -> None:
    schedule = SamplingSchedule(ceiling=0.25, increase=0.1, start=2)
    assert [schedule(epoch) for epoch in range(6)] == pytest.approx([0, 0, 0.1, 0.2, 0.25, 0.25])
