"""Sampling sentences word by word, with temperature, top-k, top-p (nucleus) and typical filters.

Shapes: B images, S samples an image, N rows still running (B * S at first), V vocabulary, T
max_length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from captioner.generation.constraints import Constraints, check_log_probs, require
from captioner.generation.hypothesis import (
    Hypothesis,
    State,
    Step,
    repeat_rows,
    select_rows,
    state_device,
)
from captioner.generation.sequences import Sequences, length_norms, score_dtype

Watch: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""watch(rows [M], tokens [M]) -> bool [M]: sees words as they are drawn, and stops their rows."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The distribution to draw from: p ** (1 / temperature), among the `top_k` likeliest words (Fan
    et al. 2018), of those the fewest that hold `top_p` of the probability (Holtzman et al. 2020),
    and of those the most typical that hold `typical_p` of it (Meister et al. 2023). Raises
    ConfigError naming the argument that is wrong.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None

    def __post_init__(self) -> None:
        heat, k = self.temperature, self.top_k
        expected = "a finite number above 0 (greedy is its limit)"
        require(0 < heat < math.inf, "temperature", heat, expected)
        require(k is None or k >= 1, "top_k", k, "at least 1, or None")
        for name in ("top_p", "typical_p"):
            p = getattr(self, name)
            require(p is None or 0 < p <= 1, name, p, "above 0 and at most 1, or None")

    def weights(self, log_probs: Tensor) -> Tensor:
        """Return what to draw in proportion to, [N, V]: 1 for the likeliest, all 0 where none may
        follow."""
        # the best is subtracted first, so that no temperature overflows
        best = log_probs.amax(dim=1, keepdim=True).clamp(min=torch.finfo(log_probs.dtype).min)
        heated = (log_probs - best) / self.temperature
        kept = filtered(heated, top_k=self.top_k, top_p=self.top_p)
        return (kept if self.typical_p is None else typical(kept, self.typical_p)).exp()


@torch.no_grad()
def sample(
    step: Step,
    state: State,
    constraints: Constraints,
    *,
    batch_size: int,
    samples: int = 1,
    params: SamplingParams | None = None,
    generator: torch.Generator | None = None,
    watch: Watch | None = None,
) -> list[list[Hypothesis]]:
    """Return `samples` independent sentences for each of the B images, the best scored first.

    log_probs and score are the model's own, before temperature and filters. A sentence closes
    without eos (`finished` False) at `max_length` words, where nothing may follow, or where
    `watch`, called at every position, says so.

    The random numbers are all drawn at the start, image by image, from `generator` (torch's default
    CPU one when None; it may live on another device than the model): a seed on the CPU gives an
    image the same sentences in one large batch as in several small ones. Raises ConfigError naming
    a wrong argument, NumericsError when the model's log-probabilities are NaN or above 0.
    """
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    require(samples >= 1, "samples", samples, "at least 1")
    params = params or SamplingParams()
    longest, device = constraints.max_length, state_device(state)
    state = repeat_rows(state, batch_size, samples)
    count = batch_size * samples
    sequences = Sequences.none((count,), longest, device)
    source = torch.device("cpu") if generator is None else generator.device
    chances = torch.rand(
        (count, longest), generator=generator, device=source, dtype=score_dtype(device)
    ).to(device)
    running = torch.arange(count, device=device)
    last = torch.full_like(running, constraints.bos)
    for position in range(longest):
        log_probs, state = step(last, state)
        allowed = constraints.apply(log_probs, sequences.tokens[running, :position])
        best = allowed.amax(dim=1)
        check_log_probs(best, position)
        last = draw(params.weights(allowed.to(chances.dtype)), chances[running, position])
        moved = best > -math.inf
        rows, words = running[moved], last[moved]
        sequences.tokens[rows, position] = words
        chosen = allowed[moved].gather(1, words.unsqueeze(1)).squeeze(1)
        sequences.log_probs[rows, position] = chosen.to(chances.dtype)
        sequences.lengths[rows] = position + 1
        moved &= last != constraints.end
        if watch is not None:
            moved[moved.clone()] = ~watch(running[moved], last[moved])
        alive = moved.nonzero().squeeze(1)
        if alive.numel() == 0:
            break
        if alive.numel() < running.numel():
            running, last, state = running[alive], last[alive], select_rows(state, alive)
    norms = length_norms(longest, constraints.length_penalty, device)[sequences.lengths]
    scored = sequences.scored(sequences.log_probs.sum(dim=1) / norms)
    by_image = Sequences(*(one.unflatten(0, (batch_size, samples)) for one in scored))
    return by_image.take(by_image.ranking()).hypotheses(constraints.end)


def filtered(log_probs: Tensor, *, top_k: int | None, top_p: float | None) -> Tensor:
    """Return log_probs [N, V] with -inf outside the top_k likeliest, then outside the nucleus.

    The nucleus is the fewest words that hold top_p. Of equals the lower id stays; one word is
    always left.
    """
    if top_k is None and top_p is None:
        return log_probs
    ordered, ids = log_probs.sort(dim=1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -math.inf
    if top_p is not None:
        probs = ordered.softmax(dim=1)
        # a word stays while those before it hold less than top_p
        before = probs.cumsum(dim=1) - probs
        before[:, 0] = 0.0
        ordered = ordered.masked_fill(before >= top_p, -math.inf)
    return torch.empty_like(log_probs).scatter_(1, ids, ordered)


def typical(log_probs: Tensor, mass: float) -> Tensor:
    """Return log_probs [N, V] with -inf outside the locally typical set.

    These are the words whose surprisal is nearest to the distribution's entropy, the fewest that
    hold `mass` of the probability. One word is always left.
    """
    logs = log_probs.log_softmax(dim=1)
    probs = logs.exp()
    entropy = -torch.where(probs > 0, probs * logs, 0.0).sum(dim=1, keepdim=True)
    _, ids = (logs + entropy).abs().sort(dim=1, stable=True)
    ordered = probs.gather(1, ids)
    before = ordered.cumsum(dim=1) - ordered
    before[:, 0] = 0.0
    return log_probs.masked_fill(
        torch.empty_like(before).scatter_(1, ids, before) >= mass, -math.inf
    )


def draw(weights: Tensor, chances: Tensor) -> Tensor:
    """Draw a token [N] a row, where its cumulative weights [N, V] pass the chance [N]."""
    cumulative = weights.cumsum(dim=1)
    # strictly below the total, so the first entry above it belongs to a word with weight
    target = chances.unsqueeze(1) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return found.clamp(max=weights.shape[1] - 1)
