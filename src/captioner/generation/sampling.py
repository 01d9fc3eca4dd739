"""Sampling sentences word by word, with temperature, top-k and top-p (nucleus) filters.

Shapes: B images, S samples an image, N rows still running (B * S at first), V vocabulary, T
max_length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from captioner.generation.constraints import (
    Constraints,
    check_length_penalty,
    check_log_probs,
    check_start,
    require,
)
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


@torch.no_grad()
def sample(
    step: Step,
    state: State,
    *,
    batch_size: int,
    bos: int,
    eos: int | None,
    max_length: int,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    min_length: int = 0,
    length_penalty: float = 1.0,
    banned: Sequence[int] = (),
    no_repeat_ngram: int = 0,
    watch: Watch | None = None,
) -> list[list[Hypothesis]]:
    """Return `samples` independent sentences for each of the B images, the best scored first.

    What may follow is drawn in proportion to p ** (1 / temperature), among the `top_k` likeliest
    words (Fan et al. 2018) and of those the fewest that hold `top_p` of the probability (Holtzman
    et al. 2020). log_probs and score are the model's own, before temperature and filters. A
    sentence closes without eos (`finished` False) at `max_length` words, where nothing may follow,
    or where `watch`, called at every position, says so.

    The random numbers are all drawn at the start, image by image, from `generator` (torch's default
    CPU one when None; it may live on another device than the model): a seed on the CPU gives an
    image the same sentences in one large batch as in several small ones. Raises ConfigError naming
    a wrong argument, NumericsError when the model's log-probabilities are NaN or above 0.
    """
    constraints = Constraints.of(
        eos=eos,
        max_length=max_length,
        min_length=min_length,
        banned=banned,
        no_repeat_ngram=no_repeat_ngram,
    )
    check_start(batch_size=batch_size, bos=bos)
    check_length_penalty(length_penalty)
    _check_sampling(samples, temperature, top_k, top_p)
    device = state_device(state)
    state = repeat_rows(state, batch_size, samples)
    sequences = Sequences.none((batch_size * samples,), max_length, device)
    chances = _chances(batch_size * samples, max_length, generator, device)
    running = torch.arange(batch_size * samples, device=device)
    last = torch.full_like(running, bos)
    for position in range(max_length):
        log_probs, state = step(last, state)
        allowed = constraints.apply(log_probs, sequences.tokens[running, :position])
        best = allowed.amax(dim=1)
        check_log_probs(best, position)
        weights = _weights(allowed.to(chances.dtype), temperature, top_k, top_p)
        last = draw(weights, chances[running, position])
        moved = best > -math.inf
        _write(sequences, running[moved], position, last[moved], allowed[moved])
        moved &= last != constraints.eos
        if watch is not None:
            moved[moved.clone()] = ~watch(running[moved], last[moved])
        alive = moved.nonzero().squeeze(1)
        if alive.numel() == 0:
            break
        if alive.numel() < running.numel():
            running, last, state = running[alive], last[alive], select_rows(state, alive)
    norms = length_norms(max_length, length_penalty, device)[sequences.lengths]
    sequences.scores = sequences.log_probs.sum(dim=1) / norms
    by_image = sequences.grouped(batch_size)
    return by_image.take(by_image.ranking()).hypotheses(constraints.eos)


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


def draw(weights: Tensor, chances: Tensor) -> Tensor:
    """Draw a token [N] a row, where its cumulative weights [N, V] pass the chance [N]."""
    cumulative = weights.cumsum(dim=1)
    # strictly below the total, so the first entry above it belongs to a word with weight
    target = chances.unsqueeze(1) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return found.clamp(max=weights.shape[1] - 1)


def _check_sampling(
    samples: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    require(samples >= 1, "samples", samples, "at least 1")
    positive = 0 < temperature < math.inf
    require(positive, "temperature", temperature, "a finite number above 0 (greedy is its limit)")
    require(top_k is None or top_k >= 1, "top_k", top_k, "at least 1, or None")
    require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "above 0 and at most 1, or None")


def _chances(
    rows: int, max_length: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Draw a number in [0, 1) for every word that could be sampled, [rows, T]."""
    source = torch.device("cpu") if generator is None else generator.device
    dtype = score_dtype(device)
    return torch.rand(rows, max_length, generator=generator, device=source, dtype=dtype).to(device)


def _weights(
    log_probs: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Return what to draw in proportion to, [N, V]: 1 for the likeliest, all 0 where none may."""
    # the best is subtracted first, so that no temperature overflows
    best = log_probs.amax(dim=1, keepdim=True).clamp(min=torch.finfo(log_probs.dtype).min)
    heated = (log_probs - best) / temperature
    return filtered(heated, top_k=top_k, top_p=top_p).exp()


def _write(
    sequences: Sequences, rows: Tensor, position: int, tokens: Tensor, log_probs: Tensor
) -> None:
    """Append tokens [M], scored by log_probs [M, V], to the given rows [M]."""
    chosen = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    sequences.tokens[rows, position] = tokens
    sequences.log_probs[rows, position] = chosen.to(sequences.log_probs.dtype)
    sequences.lengths[rows] = position + 1
