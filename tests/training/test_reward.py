"""Training on a score: its gradient against every sentence there is, and what it teaches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.data.packed import CaptionBatch, TokenStore
from captioner.errors import ConfigError, NumericsError
from captioner.evaluation.sentence_scores import CountedReferences, WeightedScore
from captioner.generation import Constraints, Hypothesis, beam_search, greedy
from captioner.models.captioner import Captioner
from captioner.models.language_model import LanguageModel, initialise
from captioner.training.reward import RewardObjective, RewardSettings

BOS, EOS = 1, 2
LONGEST = 2
Words = tuple[int, ...]


def make_model(vocab_size: int = 4, hidden: int = 4, scale: float = 0.8) -> Captioner:
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "embedding_dim": hidden, "hidden_size": hidden}
    model = Captioner(language_model=LanguageModel(**sizes), feature_dim=3, feature_norm="none")
    initialise(model, scheme="uniform", scale=scale)
    return model.double()


def make_batch(images: int = 1, captions: Sequence[Sequence[int]] = ((3,), (0, 3))) -> CaptionBatch:
    """Images with two captions each."""
    features = torch.randn(images, 1, 3, generator=torch.Generator().manual_seed(5)).double()
    store = TokenStore([*captions] * images, bos=BOS, eos=EOS)
    rows = torch.arange(images).repeat_interleave(len(captions))
    tokens, order = store.pack(torch.arange(len(rows)))
    return CaptionBatch(features, rows[order], tokens, image_numbers=torch.arange(images))


def reward_of(words: Words, image: int) -> float:
    """Any number; nothing about it is regular."""
    return math.sin(17 * image + sum(7 * (k + 1) * word**2 for k, word in enumerate(words)))


def rewards(words: Sequence[Sequence[int]], images: Sequence[int]) -> list[float]:
    return [reward_of(tuple(one), image) for one, image in zip(words, images, strict=True)]


def objective(model: Captioner, reward: Any = rewards, **settings: Any) -> RewardObjective:
    chosen = RewardSettings(**{"max_length": LONGEST, **settings})
    return RewardObjective(model, reward=reward, bos=BOS, eos=EOS, settings=chosen)


def all_sentences(vocab_size: int = 4) -> list[Words]:
    """Every sentence of at most two words: with <eos>, or cut after the second."""
    words = [token for token in range(vocab_size) if token != EOS]
    once = [(word, EOS) for word in words]
    return [(EOS,), *once, *itertools.product(words, words)]


def hypothesis(words: Words) -> Hypothesis:
    finished = words[-1] == EOS
    return Hypothesis(words[:-1] if finished else words, (-1.0,) * len(words), 0.0, finished)


def log_probs(model: Captioner, images: Tensor, sentences: Sequence[Words]) -> Tensor:
    """Of each sentence for the first image, [S], by one forward a sentence."""
    found = []
    for words in sentences:
        inputs = torch.tensor([BOS, *words[:-1]])
        sizes = torch.ones(len(words), dtype=torch.long)
        logits = model(images[:1], torch.tensor([0]), inputs, sizes)
        found.append(logits.log_softmax(1).gather(1, torch.tensor([words]).t()).sum())
    return torch.stack(found)


def exact_gradient(model: Captioner, images: Tensor) -> list[Tensor]:
    """Of minus the expected reward, from its definition: a sum over all sentences."""
    sentences = all_sentences()
    probabilities = log_probs(model, images, sentences).exp()
    assert float(probabilities.detach().sum()) == pytest.approx(1)
    expected = sum(p * reward_of(w, 0) for p, w in zip(probabilities, sentences, strict=True))
    return [*torch.autograd.grad(-expected, [*model.parameters()])]  # type: ignore[operator]


def gradient(model: Captioner, batches: Sequence[CaptionBatch]) -> list[Tensor]:
    """What a step computes of batches."""
    count = sum(batch.targets.numel() for batch in batches)
    losses = [model.loss(*b.model_inputs, b.targets, weights=b.weights) for b in batches]
    return [*torch.autograd.grad(sum(losses) / count, [*model.parameters()])]  # type: ignore[arg-type, operator]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], **by: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **({"rtol": 1e-9, "atol": 1e-12} | by))


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_the_gradient_is_that_of_the_expected_reward(baseline: str) -> None:
    """In expectation over all pairs of samples (or all single ones), without any tolerance but
    float64's."""
    model, batch = make_model(), make_batch()
    sentences = all_sentences()
    probabilities = log_probs(model, batch.images, sentences).exp().tolist()
    samples = 2 if baseline == "others" else 1
    trained = objective(model, samples=samples, baseline=baseline)
    found = [torch.zeros_like(p) for p in model.parameters()]
    for chosen in itertools.combinations_with_replacement(range(len(sentences)), samples):
        times = len({*itertools.permutations(chosen)})
        drawn = [[hypothesis(sentences[k]) for k in chosen]]
        part = gradient(model, trained.weighted(batch, drawn, [[hypothesis((0, EOS))]]))
        weight = times * math.prod(probabilities[k] for k in chosen)
        found = [one + weight * more for one, more in zip(found, part, strict=True)]
    assert_close(found, exact_gradient(model, batch.images))


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_many_samples_come_close_to_it(baseline: str) -> None:
    model, batch = make_model(), make_batch()
    torch.manual_seed(1)
    trained = objective(model, samples=20_000, baseline=baseline)
    expected = exact_gradient(model, batch.images)
    largest = max(float(one.abs().max()) for one in expected)
    # Rewards are at most 1, so an entry's standard error is about 1 / sqrt(20,000) = 0.007.
    assert largest > 0.1
    assert_close(gradient(model, trained(batch)), expected, atol=0.02, rtol=0)


def test_a_share_of_cross_entropy_is_mixed_in() -> None:
    model, batch = make_model(), make_batch(images=3)
    samples = [[hypothesis(words) for words in ((3, 0), (0, EOS), (EOS,))]] * 3
    alone = gradient(model, objective(model, samples=3).weighted(batch, samples))
    references = gradient(model, [batch])
    mixed = gradient(model, objective(model, samples=3, cross_entropy=0.3).weighted(batch, samples))
    assert_close(mixed, [0.7 * a + 0.3 * b for a, b in zip(alone, references, strict=True)])


def test_normalised_advantages_have_a_deviation_of_one() -> None:
    model, batch = make_model(), make_batch(images=2)
    samples = [[hypothesis(words) for words in ((3, 0), (0, EOS), (EOS,))]] * 2
    [plain] = objective(model, samples=3).weighted(batch, samples)
    [scaled] = objective(model, samples=3, normalise=True).weighted(batch, samples)
    found = np.array([rewards([(3, 0), (0, EOS), (EOS,)], [k] * 3) for k in range(2)])
    advantages = found - (found.sum(1, keepdims=True) - found) / 2
    assert plain.weights is not None and scaled.weights is not None
    torch.testing.assert_close(scaled.weights * advantages.std(), plain.weights)


def test_samples_are_drawn_without_dropout_and_the_mode_is_left_as_found() -> None:
    model, batch = make_model(), make_batch()
    model.language_model.dropout = replace(model.language_model.dropout, output=0.9)
    trained = objective(model, samples=50)
    found = []
    for training in (True, False):
        model.train(training)
        torch.manual_seed(3)
        [drawn] = trained(batch)
        assert model.training is training
        found.append(drawn.targets)
    assert torch.equal(*found)


def test_beams_stand_for_samples() -> None:
    """They are the search's, best first; those that a small vocabulary lacks are the best again."""
    model, batch = make_model(), make_batch(images=2)
    trained = objective(model, search="beam", samples=3)
    found, _ = trained._draw(batch.images)
    expected = beam_search(
        model.step, model.start(batch.images), trained.constraints, batch_size=2, beam_size=3
    )
    assert found == expected and all(len({one.token_ids for one in each}) == 3 for each in found)
    (drawn,) = trained(batch)
    assert drawn.weights is not None and drawn.image_rows.bincount().tolist() == [3, 3]
    sentences = len(all_sentences())
    found, _ = objective(model, search="beam", samples=20)._draw(batch.images)
    for each in found:
        assert len(each) == 20 and len({one.token_ids for one in each}) <= sentences
        assert each[-1] == each[0]


def test_figures_are_the_reward_its_spread_and_the_surprisal() -> None:
    trained = objective(make_model(), reward=lambda words, _: [len(w) for w in words], samples=2)
    first, second = hypothesis((3, 0)), hypothesis((EOS,))
    trained.weighted(make_batch(images=2), [[first, first], [first, second]])
    means = {name: total / count for name, (total, count) in trained.figures().items()}
    assert means == {"reward": 7 / 4, "reward_spread": 0.25, "entropy": 1}
    assert not any(total for total, _ in trained.figures().values())


def test_wrong_rewards_and_settings_are_refused() -> None:
    trained = objective(make_model(), reward=lambda words, _: [math.nan, *[0] * (len(words) - 1)])
    with pytest.raises(NumericsError, match=r"reward of 1 of 10 samples .* nan for tokens \[.*\]"):
        trained(make_batch(images=2))
    with pytest.raises(ConfigError, match="2 samples or more, got 1; take the greedy baseline"):
        RewardSettings(samples=1)
    with pytest.raises(ConfigError, match="the search must be one of sample, beam, got 'best'"):
        RewardSettings(search="best")
    with pytest.raises(ConfigError, match="others, greedy, got 'best'"):
        RewardSettings(baseline="best")


A, MAN, ON, NOUNS = 4, 5, 6, (7, 8, 9, 10)  # a man on a horse, bike, sofa, hill


def learned(end: int | None) -> list[int]:
    """The greedy caption after training on CIDEr-D, the end counting or not."""
    references = [[[A, MAN, ON, A, noun] for noun in NOUNS], [[11, 12, A, 13]], [[11, A, 12, ON]]]
    counted = CountedReferences(references, end=end)
    reward = WeightedScore(references=counted, end=EOS, end_counts=end is not None)
    model = make_model(vocab_size=14, hidden=8, scale=0.5)
    trained = objective(model, reward, samples=10, max_length=6)
    batch = make_batch(captions=references[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.04)

    def take_steps(count: int, batches: Callable[[], Sequence[CaptionBatch]]) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            for parameter, part in zip(model.parameters(), gradient(model, batches()), strict=True):
                parameter.grad = part
            optimizer.step()

    take_steps(30, lambda: [batch])
    take_steps(60, lambda: trained(batch))
    rules = Constraints(bos=BOS, eos=EOS, max_length=6)
    with torch.no_grad():
        [[best]] = greedy(model.step, model.start(batch.images), rules, batch_size=1)
    return [*best.token_ids]


def test_an_end_that_does_not_count_breaks_the_endings() -> None:
    """The score of "a man on a" is higher than with any one noun, which is wrong for three of
    four references; the end after it is wrong for all of them (SacreEOS)."""
    assert learned(end=None) == [A, MAN, ON, A]
    caption = learned(end=EOS)
    assert caption[:-1] == [A, MAN, ON, A] and caption[-1] in NOUNS
