"""Beam search, diverse beam search and greedy search, batched over images.

Shapes: B images, n images still searched, G groups, W beams a group (K = G * W in all), V
vocabulary, T max_length, P hypotheses kept a group. A row of the step's batch is one beam: N = n *
K, image by image, group by group.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
from captioner.generation.sequences import Sequences, length_norms


@torch.no_grad()
def beam_search(
    step: Step,
    state: State,
    constraints: Constraints,
    *,
    batch_size: int,
    beam_size: int,
    n_best: int | None = None,
    groups: int = 1,
    diversity: float = 0.0,
) -> list[list[Hypothesis]]:
    """Return for each image its `n_best` (by default K) best hypotheses, or as many as exist.

    At each step the K best continuations are taken; equals by the rank of their beams, then by
    token id. An image leaves the batch as soon as no running beam can reach the worst hypothesis
    kept, so its result is that of a search to the end. A beam of `max_length` words is closed
    without eos (`finished` False) and competes by its score; so are the beams of an image without a
    hypothesis when nothing may follow them.

    `groups` > 1 is diverse beam search (Vijayakumar et al. 2016): the groups choose in turn, and a
    word costs a group `diversity` for each beam of the earlier groups that took it at this step;
    eos costs nothing, and scores stay the model's. Hypotheses are ranked together, each sentence
    once.

    `state` is for B rows and is repeated inside. Raises ConfigError naming a wrong argument,
    NumericsError when the model's log-probabilities are NaN or above 0.
    """
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    n_best = beam_size if n_best is None else n_best
    require(beam_size >= 1, "beam_size", beam_size, "at least 1")
    require(1 <= n_best <= beam_size, "n_best", n_best, f"from 1 to beam_size = {beam_size}")
    divides = groups >= 1 and beam_size % groups == 0
    require(divides, "groups", groups, f"a divisor of beam_size = {beam_size}")
    require(0 <= diversity < math.inf, "diversity", diversity, "a finite number, at least 0")
    device = state_device(state)
    state = repeat_rows(state, batch_size, beam_size)
    last = torch.full((batch_size * beam_size,), constraints.bos, dtype=torch.long, device=device)
    search = _Search(
        constraints,
        shape=(batch_size, groups, beam_size // groups),
        kept=min(n_best, beam_size // groups),
        diversity=diversity,
        device=device,
    )
    results: list[list[Hypothesis]] = [[] for _ in range(batch_size)]
    for position in range(constraints.max_length):
        log_probs, state = step(last, state)
        search.advance(log_probs, position)
        for image, found in search.retire(position):
            results[image] = _ranked(found, n_best)
        if search.images.numel() == 0:
            break
        last = search.beams.tokens[..., position].flatten()
        state = select_rows(state, search.origins.flatten())
    return results


def greedy(
    step: Step, state: State, constraints: Constraints, *, batch_size: int
) -> list[list[Hypothesis]]:
    """Return one hypothesis for each image, a beam of one: the argmax at each step, the lower id of
    equals. Arguments and errors are those of `beam_search`.
    """
    return beam_search(step, state, constraints, batch_size=batch_size, beam_size=1)


def best_tokens(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row of log_probs [N, V] and their ids, both [N, k].

    The lower id comes first of equals. topk leaves open which of them it takes and in what order.
    The k are sorted again for the order; which are taken matters only where the k-th equals the
    next, and only those rows are sorted whole.
    """
    values, ids = log_probs.topk(min(k + 1, log_probs.shape[1]))
    if values.shape[1] > k:
        tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > -math.inf)
        if bool(tied.any()):
            ordered = log_probs[tied].sort(dim=1, descending=True, stable=True)
            values[tied], ids[tied] = ordered.values[:, : k + 1], ordered.indices[:, : k + 1]
    ids, order = ids[:, :k].sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _ranked(found: list[Hypothesis], n_best: int) -> list[Hypothesis]:
    """Return the n_best of all groups, best first, each sentence once."""
    once: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in sorted(found, key=lambda one: -one.score):
        once.setdefault(hypothesis.token_ids, hypothesis)
    return list(once.values())[:n_best]


class _Search:
    """The bookkeeping of all images still searched; nothing in it loops over images or beams."""

    def __init__(
        self,
        constraints: Constraints,
        *,
        shape: tuple[int, int, int],
        kept: int,
        diversity: float,
        device: torch.device,
    ) -> None:
        self.constraints, self.diversity = constraints, diversity
        longest = constraints.max_length
        self.norms = length_norms(longest, constraints.length_penalty, device)
        # [n], which of the B images each row is
        self.images = torch.arange(shape[0], device=device)
        # [n, G, W], the row of the step's batch that each beam comes from
        self.origins = torch.arange(math.prod(shape), device=device).view(shape)
        # [n, G, W], scores the plain sums; -inf a beam that has ended
        self.beams = Sequences.none(shape, longest, device)
        self.beams.scores[..., 0] = 0.0  # before the first word all beams of a group are the same
        # [n, G, P], scores normalised, best first
        self.done = Sequences.none((*shape[:2], kept), longest, device)

    def advance(self, log_probs: Tensor, position: int) -> None:
        """Extend every beam by a token, given log_probs [N, V]; set aside those that end."""
        words = self.beams.tokens[..., :position].flatten(0, 2)
        log_probs = self.constraints.apply(log_probs, words)
        check_log_probs(log_probs.amax(dim=1), position)
        shape = self.beams.scores.shape
        chosen = self._choose(log_probs.unflatten(0, shape))
        self._close_stuck(chosen.sums, length=position)
        self.beams = self.beams.take(chosen.parents).scored(chosen.sums)
        self.beams.write(chosen.tokens, chosen.log_probs, position)
        first = torch.arange(0, words.shape[0], shape[2], device=words.device)
        self.origins = first.view(*shape[:2], 1) + chosen.parents
        ended = chosen.tokens == self.constraints.end
        self._set_aside(ended, length=position + 1)
        self.beams = self.beams.scored(self.beams.scores.masked_fill(ended, -math.inf))
        if position + 1 == self.constraints.max_length:
            self._set_aside(~ended, length=position + 1)

    def retire(self, position: int) -> list[tuple[int, list[Hypothesis]]]:
        """Drop the images whose result is certain; return the number and hypotheses of each."""
        # sums only fall and the penalty is at least 0: no beam can end better than with the sum it
        # has now at the longest length
        attainable = self.beams.scores.amax(dim=-1) / self.norms[-1]
        certain = (self.done.scores[..., -1] >= attainable).all(dim=-1)
        if position + 1 == self.constraints.max_length:
            certain = torch.ones_like(certain)
        if not bool(certain.any()):
            return []
        numbers = self.images[certain].tolist()
        found = self.done.rows(certain).hypotheses(self.constraints.end)
        running = ~certain
        self.images, self.origins = self.images[running], self.origins[running]
        self.beams, self.done = self.beams.rows(running), self.done.rows(running)
        return list(zip(numbers, found, strict=True))

    def _choose(self, log_probs: Tensor) -> _Choice:
        """Choose the W best continuations of each group, given log_probs [n, G, W, V]."""
        groups = log_probs.shape[1]
        cost = None
        choices = []
        for group in range(groups):
            choice = _best_continuations(log_probs[:, group], self.beams.scores[:, group], cost)
            choices.append(choice)
            if self.diversity > 0 and group + 1 < groups:
                taken = (choice.sums > -math.inf) & (choice.tokens != self.constraints.end)
                if cost is None:
                    cost = torch.zeros_like(log_probs[:, 0, 0])
                paid = (self.diversity * taken).to(cost.dtype)
                cost = cost.scatter_add(1, choice.tokens, paid)
        return _Choice(*(torch.stack(parts, dim=1) for parts in zip(*choices, strict=True)))

    def _set_aside(self, which: Tensor, length: int) -> None:
        """Enter the beams of the mask [n, G, W] among the hypotheses; `length` counts the eos."""
        scores = (self.beams.scores / self.norms[length]).masked_fill(~which, -math.inf)
        self.done = self.done.best_with(self.beams.scored(scores))

    def _close_stuck(self, sums: Tensor, length: int) -> None:
        """Set aside all beams of an image that has no hypothesis and no continuation."""
        nothing = (sums == -math.inf).all(dim=-1) & (self.done.scores[..., 0] == -math.inf)
        stuck = nothing.all(dim=1)
        if bool(stuck.any()):
            self._set_aside(stuck.view(-1, 1, 1).expand_as(sums), length)


class _Choice(NamedTuple):
    """What continues a group's beams, best first: each [n, W], or [n, G, W] of all groups."""

    parents: Tensor  # the beam continued, within its group
    tokens: Tensor
    log_probs: Tensor
    sums: Tensor  # -inf where there were fewer continuations than beams


def _best_continuations(log_probs: Tensor, sums: Tensor, cost: Tensor | None) -> _Choice:
    """Choose among log_probs [n, W, V] for beams with sums [n, W], less the words' cost [n, V]."""
    images, width, size = log_probs.shape
    wanted = log_probs if cost is None else log_probs - cost.unsqueeze(1)
    per_beam = min(width, size)
    values, ids = best_tokens(wanted.flatten(0, 1), per_beam)
    ranks = (sums.unsqueeze(2) + values.view(images, width, per_beam)).flatten(1)
    order = ranks.sort(dim=1, descending=True, stable=True).indices[:, :width]
    parents = order // per_beam
    tokens = ids.view(images, width * per_beam).gather(1, order)
    taken = log_probs.flatten(1).gather(1, parents * size + tokens)
    # rounding may leave a log-probability just above 0, but the bound in retire() needs at most 0
    taken = taken.to(sums.dtype).clamp(max=0)
    return _Choice(parents, tokens, taken, sums.gather(1, parents) + taken)
