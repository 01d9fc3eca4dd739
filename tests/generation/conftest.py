"""A model small enough to enumerate, and plain Python twins of the searches over it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from captioner.generation import Hypothesis

BOS, EOS = 1, 2


@dataclass(frozen=True)
class Rules:
    """The constraints of a generation, written again in plain Python."""

    max_length: int
    min_length: int = 0
    banned: tuple[int, ...] = ()
    no_repeat_ngram: int = 0

    def allow(self, prefix: tuple[int, ...], token: int) -> bool:
        if token in self.banned or (token == EOS and len(prefix) < self.min_length):
            return False
        n = self.no_repeat_ngram
        if n == 0 or token == EOS:
            return True
        words = (*prefix, token)
        ngrams = [words[i : i + n] for i in range(len(words) - n + 1)]
        return len(ngrams) == len(set(ngrams))

    def as_arguments(self) -> dict:
        return dict(vars(self), bos=BOS, eos=EOS)


class TinyModel:
    """A random recurrent network with a starting state an image; `rows` records the batch sizes."""

    def __init__(
        self, *, vocab_size: int = 5, images: int = 3, seed: int = 0, sharpness: float = 2.0
    ):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.vocab_size, self.sharpness = vocab_size, sharpness
        self.starts, self.words = draw(images, 4), draw(vocab_size, 4)
        self.recurrent, self.output = draw(4, 4), draw(4, vocab_size)
        self.rows: list[int] = []

    def state(self, *images: int) -> dict[str, Tensor]:
        return {"h": self.starts[list(images)].unsqueeze(0)}

    def step(self, token_ids: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.rows.append(len(token_ids))
        # summed by hand, so that a row does not depend on the number of rows beside it
        mixed = (state["h"][0].unsqueeze(2) * self.recurrent).sum(1) + self.words[token_ids]
        h = mixed.tanh()
        logits = (h.unsqueeze(2) * self.output).sum(1) * self.sharpness
        return logits.log_softmax(1), {"h": h.unsqueeze(0)}

    def after(self, image: int, prefix: tuple[int, ...]) -> list[float]:
        state = self.state(image)
        for token in (BOS, *prefix):
            log_probs, state = self.step(torch.tensor([token]), state)
        return log_probs[0].tolist()


def brute_force(
    model: TinyModel, image: int, rules: Rules, length_penalty: float
) -> list[Hypothesis]:
    """Every hypothesis there is, best first."""
    found: list[Hypothesis] = []

    def close(words: tuple[int, ...], log_probs: tuple[float, ...], finished: bool) -> None:
        score = sum(log_probs) / len(log_probs) ** length_penalty
        found.append(Hypothesis(words, log_probs, score, finished))

    def extend(words: tuple[int, ...], log_probs: tuple[float, ...]) -> None:
        if len(words) == rules.max_length:
            close(words, log_probs, False)
            return
        for token, log_prob in enumerate(model.after(image, words)):
            if not rules.allow(words, token):
                continue
            if token == EOS:
                close(words, (*log_probs, log_prob), True)
            else:
                extend((*words, token), (*log_probs, log_prob))

    extend((), ())
    return sorted(found, key=lambda one: -one.score)


def plain_beam_search(
    model: TinyModel,
    image: int,
    rules: Rules,
    *,
    beam_size: int,
    length_penalty: float,
    groups: int = 1,
    diversity: float = 0.0,
) -> list[Hypothesis]:
    """Beam search as one would write it first: lists, one image, always to the end."""
    width = beam_size // groups
    beams: list[list[tuple[tuple[int, ...], tuple[float, ...]]]] = [[((), ())]] * groups
    done: list[list[Hypothesis]] = [[] for _ in range(groups)]
    for position in range(rules.max_length):
        counts = [0] * model.vocab_size
        for group in range(groups):
            candidates = []
            for rank, (words, log_probs) in enumerate(beams[group]):
                for token, log_prob in enumerate(model.after(image, words)):
                    if rules.allow(words, token) and log_prob > -math.inf:
                        wanted = sum(log_probs) + log_prob - diversity * counts[token]
                        candidates.append((-wanted, rank, token, words, (*log_probs, log_prob)))
            chosen = sorted(candidates)[:width]
            beams[group] = []
            for _, _, token, words, log_probs in chosen:
                grown = words if token == EOS else (*words, token)
                if token == EOS or position + 1 == rules.max_length:
                    score = sum(log_probs) / len(log_probs) ** length_penalty
                    done[group].append(Hypothesis(grown, log_probs, score, token == EOS))
                else:
                    beams[group].append((grown, log_probs))
            for _, _, token, _, _ in chosen:
                counts[token] += token != EOS
    kept = [sorted(one, key=lambda found: -found.score)[:width] for one in done]
    once: dict[tuple[int, ...], Hypothesis] = {}
    for found in sorted((one for group in kept for one in group), key=lambda one: -one.score):
        once.setdefault(found.token_ids, found)
    return list(once.values())[:beam_size]


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.finished for one in found] == [one.finished for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-9)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)


def constant_step(log_probs: list[float]) -> Callable:
    """A step that says the same whatever came before."""

    def step(token_ids: Tensor, state: object) -> tuple[Tensor, object]:
        return torch.tensor(log_probs).expand(len(token_ids), -1), state

    return step


@pytest.fixture
def tiny() -> type[TinyModel]:
    return TinyModel


@pytest.fixture
def rules() -> type[Rules]:
    return Rules


@pytest.fixture
def enumerate_all() -> Callable:
    return brute_force


@pytest.fixture
def plain_search() -> Callable:
    return plain_beam_search


@pytest.fixture
def same() -> Callable:
    return assert_same


@pytest.fixture
def constant() -> Callable:
    return constant_step
