"""A text's score: one stream, whatever the batch size or the window, and averages done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from captioner.data.text.corpus import TokenStream
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.validation.text import TextValidator, stream_losses

BOS, V = 1, 9


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(
        vocab_size=V, embedding_dim=4, hidden_size=6, dropout=DropoutRates(output=0.5)
    )
    for parameter in model.parameters():
        parameter.data.uniform_(-1, 1)
    return model.train()


def tokens_of(documents: bool) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(4, V, 200).astype(np.uint8)
    tokens[0] = BOS
    if documents:
        tokens[[30, 31, 90, 150]] = BOS
    return tokens


def by_steps(model: LanguageModel, tokens: np.ndarray) -> list[float]:
    """One token at a time, by `step`."""
    model.eval()
    zeros = torch.zeros(1, 1, 6)
    found, state = [], (zeros, zeros)
    with torch.no_grad():
        for token, following in zip(tokens.tolist(), tokens.tolist()[1:], strict=False):
            if token == BOS:
                state = (zeros, zeros)
            log_probs, state = model.step(torch.tensor([token]), state)
            found.append(-float(log_probs[0, following]))
    model.train()
    return found


@pytest.mark.parametrize("documents", [False, True])
def test_every_token_is_scored_in_order_after_all_of_its_document(
    model: LanguageModel, documents: bool
) -> None:
    tokens = tokens_of(documents)
    expected = by_steps(model, tokens)
    for window in (1, 7, 64, 199, 500):
        parts = list(stream_losses(model, tokens, bos=BOS, window=window))
        assert model.training
        assert torch.cat([targets for targets, _ in parts]).tolist() == tokens[1:].tolist()
        found = torch.cat([losses for _, losses in parts]).tolist()
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("unit", ["character", "byte", "word"])
def test_figures_and_what_they_are_averaged_over(model: LanguageModel, unit: str) -> None:
    tokens = tokens_of(True)
    stream = TokenStream(tokens, documents=5, characters=120, unknown=2)
    before = torch.get_rng_state()
    validator = TextValidator(model=model, stream=stream, unit=unit, bos=BOS)
    figures = validator(0)
    assert torch.equal(torch.get_rng_state(), before)
    losses = by_steps(model, tokens)
    mean, bits = sum(losses) / 199, sum(losses) / math.log(2)
    expected = {"loss": mean, "perplexity": math.exp(mean)}
    if unit == "character":
        expected["bits_per_character"] = bits / 199
    if unit == "byte":
        expected |= {"bits_per_byte": bits / 199, "bits_per_character": bits / 120}
    assert figures == pytest.approx(expected, rel=1e-5)
    what = {"word": "words and ends of lines"}.get(unit, f"{unit}s")
    assert validator.averaged_over() == f"195 {what} and 4 ends of documents, 2 unknown"
