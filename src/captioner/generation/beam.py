"""Beam search and diverse beam search, batched over images; one group is ordinary beam search.

Shapes: B images, n images still searched, G groups, W beams a group (K = G * W in all), V
vocabulary, T max_length, P hypotheses kept a group. A row of the step's batch is one beam: N = n *
K, image by image, group by group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
from captioner.generation.sequences import Sequences, length_norms


@torch.no_grad()
def beam_search(
    step: Step,
    state: State,
    *,
    batch_size: int,
    bos: int,
    eos: int | None,
    beam_size: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 1.0,
    n_best: int | None = None,
    groups: int = 1,
    diversity: float = 0.0,
    banned: Sequence[int] = (),
    no_repeat_ngram: int = 0,
) -> list[list[Hypothesis]]:
    """Return for each image its `n_best` (by default K) best hypotheses, or as many as exist.

    At each step the K best continuations are taken, of equals the better-ranked beam's and then the
    lower token id; those that end in eos are set aside, the others go on. The score is
    sum(log_probs) / length ** length_penalty, as `length_normalization_factor` in Show and Tell's
    released code (Vinyals et al. 2016): 0 the plain sum, 1 the mean log-probability. The length
    counts the eos. An image is dropped from the batch as soon as no running beam can reach the
    worst hypothesis kept, log-probabilities being at most 0, so its result is that of a search to
    the end. A beam of `max_length` words is closed without eos (`finished` False) and competes by
    its score; so are the beams of an image that has no hypothesis yet when nothing may follow them.

    `groups` > 1 is diverse beam search (Vijayakumar et al. 2016): the groups choose in turn, and a
    word costs a group `diversity` for each beam of the earlier groups that took it at this step.
    The cost steers the choice alone, scores stay the model's; ends are free. The groups' hypotheses
    are ranked together, each sentence once.

    `state` is for B rows and is repeated inside; eos None is a model without an end. Raises
    ConfigError naming a wrong argument, NumericsError when the model's log-probabilities are NaN or
    above 0.
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
    n_best = beam_size if n_best is None else n_best
    _check_beams(beam_size, n_best, groups, diversity)
    device = state_device(state)
    state = repeat_rows(state, batch_size, beam_size)
    last = torch.full((batch_size * beam_size,), bos, dtype=torch.long, device=device)
    search = _Search.start(
        constraints,
        norms=length_norms(max_length, length_penalty, device),
        shape=(batch_size, groups, beam_size // groups),
        kept=min(n_best, beam_size // groups),
        diversity=diversity,
    )
    results: list[list[Hypothesis]] = [[] for _ in range(batch_size)]
    for position in range(max_length):
        log_probs, state = step(last, state)
        search.advance(log_probs, position)
        for image, found in search.retire(position):
            results[image] = _ranked(found, n_best)
        if search.images.numel() == 0:
            break
        last = search.beams.tokens[..., position].flatten()
        state = select_rows(state, search.origins.flatten())
    return results


def best_tokens(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row of log_probs [N, V] and their ids, both [N, k].

    The lower id comes first of equals. topk leaves open which of them it takes and in what order.
    The order is mended by sorting the k; which are taken only matters where the k-th equals the
    next, and those rows alone are sorted whole.
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


def _check_beams(beam_size: int, n_best: int, groups: int, diversity: float) -> None:
    require(beam_size >= 1, "beam_size", beam_size, "at least 1")
    require(1 <= n_best <= beam_size, "n_best", n_best, f"from 1 to beam_size = {beam_size}")
    divides = groups >= 1 and beam_size % groups == 0
    require(divides, "groups", groups, f"a divisor of beam_size = {beam_size}")
    require(0 <= diversity < math.inf, "diversity", diversity, "a finite number, at least 0")


def _ranked(found: list[Hypothesis], n_best: int) -> list[Hypothesis]:
    """Return the n_best of all groups, best first, each sentence once."""
    once: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in sorted(found, key=lambda one: -one.score):
        once.setdefault(hypothesis.token_ids, hypothesis)
    return list(once.values())[:n_best]


@dataclass
class _Search:
    """The bookkeeping of all images still searched; nothing in it loops over images or beams."""

    constraints: Constraints
    norms: Tensor  # [T + 1], length ** length_penalty
    diversity: float
    images: Tensor  # [n], which of the B images each row is
    origins: Tensor  # [n, G, W], the row of the step's batch that each beam comes from
    beams: Sequences  # [n, G, W], scores the plain sums; -inf a beam that has ended
    done: Sequences  # [n, G, P], scores normalised, best first

    @classmethod
    def start(
        cls,
        constraints: Constraints,
        *,
        norms: Tensor,
        shape: tuple[int, int, int],
        kept: int,
        diversity: float,
    ) -> _Search:
        device = norms.device
        beams = Sequences.none(shape, constraints.max_length, device)
        # all beams are the same before the first word: one a group stands for them
        beams.scores[..., 0] = 0.0
        return cls(
            constraints=constraints,
            norms=norms,
            diversity=diversity,
            images=torch.arange(shape[0], device=device),
            origins=torch.arange(beams.scores.numel(), device=device).view(shape),
            beams=beams,
            done=Sequences.none((*shape[:2], kept), constraints.max_length, device),
        )

    def advance(self, log_probs: Tensor, position: int) -> None:
        """Extend every beam by a token, given log_probs [N, V]; set aside those that end."""
        words = self.beams.tokens[..., :position].flatten(0, 2)
        log_probs = self.constraints.apply(log_probs, words)
        check_log_probs(log_probs.amax(dim=1), position)
        shape = self.beams.scores.shape
        chosen = self._choose(log_probs.unflatten(0, shape))
        self._close_stuck(chosen.sums, length=position)
        self.beams = self.beams.take(chosen.parents).scored(chosen.sums)
        self.beams.append(chosen.tokens, chosen.log_probs, position)
        first = torch.arange(0, words.shape[0], shape[2], device=words.device)
        self.origins = first.view(*shape[:2], 1) + chosen.parents
        ended = chosen.tokens == self.constraints.eos
        self._set_aside(ended, length=position + 1)
        self.beams.scores = self.beams.scores.masked_fill(ended, -math.inf)
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
        found = self.done.rows(certain).hypotheses(self.constraints.eos)
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
                taken = (choice.sums > -math.inf) & (choice.tokens != self.constraints.eos)
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
        """Set aside, as they are, all beams of an image that has nothing yet and can go nowhere."""
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
    # rounding may leave a certain token a hair above 0, which the bound in retire() rules out
    taken = taken.to(sums.dtype).clamp(max=0)
    return _Choice(parents, tokens, taken, sums.gather(1, parents) + taken)
