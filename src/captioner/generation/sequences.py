"""Sequences under construction, as tensors: a step takes as many operations for any batch.

Shapes: [...] any leading shape, its last dimension K the sequences that compete; T longest length.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.generation.hypothesis import Hypothesis


def score_dtype(device: torch.device) -> torch.dtype:
    """Return the type that sums are kept in: float64, but for MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def length_norms(max_length: int, length_penalty: float, device: torch.device) -> Tensor:
    """Return length ** length_penalty for lengths 0..T, [T + 1]; 1 for the empty sequence."""
    lengths = torch.arange(max_length + 1, dtype=score_dtype(device), device=device)
    return lengths.clamp(min=1) ** length_penalty


class Sequences(NamedTuple):
    """Scores [...], tokens [..., T] with the eos, log_probs [..., T] and lengths [...].

    A score of -inf marks no sequence.
    """

    scores: Tensor
    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor

    @classmethod
    def none(cls, shape: tuple[int, ...], max_length: int, device: torch.device) -> Sequences:
        """Return empty slots for sequences."""
        dtype = score_dtype(device)
        return cls(
            scores=torch.full(shape, -math.inf, dtype=dtype, device=device),
            tokens=torch.zeros(*shape, max_length, dtype=torch.long, device=device),
            log_probs=torch.zeros(*shape, max_length, dtype=dtype, device=device),
            lengths=torch.zeros(shape, dtype=torch.long, device=device),
        )

    def take(self, order: Tensor) -> Sequences:
        """Return the sequences at `order` [..., K'] along the last leading dimension."""
        slots = order.unsqueeze(-1).expand(*order.shape, self.tokens.shape[-1])
        return Sequences(
            scores=self.scores.gather(-1, order),
            tokens=self.tokens.gather(-2, slots),
            log_probs=self.log_probs.gather(-2, slots),
            lengths=self.lengths.gather(-1, order),
        )

    def rows(self, index: Tensor) -> Sequences:
        """Return the rows of the first dimension that `index` (positions or a mask) names."""
        return Sequences(*(one[index] for one in self))

    def write(self, tokens: Tensor, log_probs: Tensor, position: int) -> None:
        """Write one token [...] and its log-probability [...] at `position` of every sequence."""
        self.tokens[..., position] = tokens
        self.log_probs[..., position] = log_probs
        self.lengths.fill_(position + 1)

    def scored(self, scores: Tensor) -> Sequences:
        """Return the same sequences under other scores [...]."""
        return self._replace(scores=scores)

    def best_with(self, others: Sequences) -> Sequences:
        """Return the K best of these and `others`, best first, and these before their equals."""
        dim = self.scores.dim() - 1
        both = (torch.cat(pair, dim=dim) for pair in zip(self, others, strict=True))
        everything = Sequences(*both)
        return everything.take(everything.ranking()[..., : self.scores.shape[-1]])

    def ranking(self) -> Tensor:
        """Return the order [..., K] of the scores, best first, equals as they stand."""
        return self.scores.sort(dim=-1, descending=True, stable=True).indices

    def hypotheses(self, eos: int) -> list[list[Hypothesis]]:
        """Return the sequences there are as they stand, a list for each entry of the first dim."""
        flat = (self.scores.flatten(1), self.tokens.flatten(1, -2), self.log_probs.flatten(1, -2))
        columns = [tensor.tolist() for tensor in (*flat, self.lengths.flatten(1))]
        return [
            [_hypothesis(eos, *one) for one in zip(*row, strict=True) if one[0] > -math.inf]
            for row in zip(*columns, strict=True)
        ]


def _hypothesis(
    eos: int, score: float, tokens: list[int], log_probs: list[float], length: int
) -> Hypothesis:
    finished = length > 0 and tokens[length - 1] == eos
    words = tokens[: length - 1] if finished else tokens[:length]
    return Hypothesis(tuple(words), tuple(log_probs[:length]), score, finished)
