"""A text's score: one stream, whatever the batch size or the window, and averages done by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from captioner.data.text.corpus import TokenStream
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.validation.dynamic import DynamicEvaluation
from captioner.validation.text import TextScore, TextValidator, mean_probability, stream_losses

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


@pytest.mark.parametrize("unit", ["character", "byte", "word", "bpe"])
def test_figures_and_what_they_are_averaged_over(model: LanguageModel, unit: str) -> None:
    tokens = tokens_of(True)
    stream = TokenStream(tokens, documents=5, characters=120, bytes=150, unknown=2)
    before = torch.get_rng_state()
    validator = TextValidator(model=model, stream=stream, unit=unit, bos=BOS)
    figures = validator(0)
    assert torch.equal(torch.get_rng_state(), before)
    losses = by_steps(model, tokens)
    mean, bits = sum(losses) / 199, sum(losses) / math.log(2)
    expected = {"loss": mean, "perplexity": math.exp(mean), "bits_per_byte": bits / 150}
    if unit != "word":
        expected["bits_per_character"] = bits / {"character": 199, "byte": 120, "bpe": 120}[unit]
    assert figures == pytest.approx(expected, rel=1e-5)
    what = {"word": "words and ends of lines", "bpe": "byte pairs"}.get(unit, f"{unit}s")
    score = TextScore(stream, unit=unit, bos=BOS)
    assert score.averaged_over() == f"195 {what} and 4 ends of documents, 2 unknown"
    for part in stream_losses(model, tokens, bos=BOS, window=64):
        score.add(*part)
    assert score.figures() == pytest.approx(figures)
    ends = [0, *((tokens[1:] == BOS).nonzero()[0] + 1), 199]
    by_hand = [[sum(losses[a:b]), b - a] for a, b in pairwise(ends)]
    assert score.per_document() == pytest.approx(np.array(by_hand), rel=1e-5)


def test_an_ensemble_has_the_loss_of_the_mean_probability(model: LanguageModel) -> None:
    tokens, other = tokens_of(True), copy.deepcopy(model)
    torch.nn.init.uniform_(other.output.weight, -1, 1)
    members = [stream_losses(one, tokens, bos=BOS, window=64) for one in (model, other)]
    found = torch.cat([losses for _, losses in mean_probability(members)])
    both = np.exp(-np.array([by_steps(one, tokens) for one in (model, other)]))
    assert found.numpy() == pytest.approx(-np.log(both.mean(0)), abs=1e-5)


@pytest.mark.parametrize("documents", [False, True])
def test_dynamic_evaluation_is_the_published_rule(model: LanguageModel, documents: bool) -> None:
    """Against a plain loop in float64 that keeps lists of weights and gradients."""
    model = model.double()
    tokens, training = tokens_of(documents), tokens_of(True)[::-1].copy()
    training[0] = BOS
    before = copy.deepcopy(model.state_dict())
    rule = DynamicEvaluation(window=9, lr=0.05, decay=0.3)
    parts = [*rule.losses(model, tokens, training=training, bos=BOS)]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.cat([targets for targets, _ in parts]).tolist() == tokens[1:].tolist()

    learner = copy.deepcopy(model).eval()
    weights = [*learner.parameters()]
    first = [weight.detach().clone() for weight in weights]
    length, mean_squares = 1000 // 20 * 9 + 1, [torch.zeros_like(weight) for weight in weights]
    assert length > len(training)  # so it is read once, whole
    for losses in segments(learner, training, 9):
        for total, gradient in zip(
            mean_squares, torch.autograd.grad(losses.mean(), weights), strict=True
        ):
            total += gradient**2
    roots = [total.sqrt() for total in mean_squares]
    mean = torch.cat([root.flatten() for root in roots]).mean()
    expected = []
    for losses in segments(learner, tokens, 9):
        expected.append(losses.detach())
        gradients = torch.autograd.grad(losses.mean(), weights)
        for weight, gradient, root, start in zip(weights, gradients, roots, first, strict=True):
            away = torch.minimum(torch.ones_like(root), 0.3 * root / mean) * (start - weight)
            weight.data += away - 0.05 * gradient / (root / mean + 1e-3)
    found = torch.cat([losses for _, losses in parts])
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)


def segments(model: LanguageModel, tokens: np.ndarray, window: int) -> Iterator[torch.Tensor]:
    """The losses of the next `window` tokens, one token at a time, with their gradient."""
    zeros = torch.zeros(1, 1, 6, dtype=torch.float64)
    state, losses = (zeros, zeros), []
    following = tokens.tolist()[1:]
    for place, (token, target) in enumerate(zip(tokens.tolist(), following, strict=False), 1):
        state = (zeros, zeros) if token == BOS else state
        log_probs, state = model.step(torch.tensor([token]), state)
        losses.append(-log_probs[0, target])
        if place % window == 0 or place == len(following):
            yield torch.stack(losses)
            state, losses = (state[0].detach(), state[1].detach()), []
