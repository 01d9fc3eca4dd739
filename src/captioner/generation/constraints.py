"""What every method of generation obeys: where a sentence starts and ends, and what it may hold.

Shapes: N rows, V vocabulary, t words so far.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.errors import ConfigError, NumericsError


def require(condition: bool, name: str, found: object, expected: str) -> None:
    """Raise ConfigError naming the argument, unless the condition on what was found holds."""
    if not condition:
        raise ConfigError(f"{name} must be {expected}, got {found!r}")


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The rules of one generation; lengths count words, without bos and eos.

    Sentences start from `bos` and end with `eos` (None: the model has no end). `banned` ids never
    appear; eos does not before `min_length` words; no n-gram of `no_repeat_ngram` words appears
    twice (0: any may; 1: no word does); a sentence of `max_length` words is closed without eos. The
    score is sum(log_probs) / length ** length_penalty, the length counting the eos, as
    `length_normalization_factor` in Show and Tell's released code (Vinyals et al. 2016): 0 the
    plain sum, 1 the mean log-probability. Raises ConfigError naming the argument that is wrong.
    """

    bos: int
    eos: int | None
    max_length: int
    min_length: int = 0
    length_penalty: float = 1.0
    banned: Collection[int] = ()
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned", tuple(sorted({int(token) for token in self.banned})))
        require(self.bos >= 0, "bos", self.bos, "a token id, at least 0")
        require(self.eos is None or self.eos >= 0, "eos", self.eos, "a token id or None")
        require(self.max_length >= 1, "max_length", self.max_length, "at least 1")
        require(self.min_length >= 0, "min_length", self.min_length, "at least 0")
        within = self.min_length <= self.max_length
        require(within, "min_length", self.min_length, f"at most max_length = {self.max_length}")
        in_range = 0 <= self.length_penalty <= 10
        require(in_range, "length_penalty", self.length_penalty, "between 0 and 10")
        require(min(self.banned, default=0) >= 0, "banned", self.banned, "token ids, at least 0")
        without = self.eos not in self.banned
        require(without, "banned", self.banned, "without eos (eos=None bans it)")
        require(self.no_repeat_ngram >= 0, "no_repeat_ngram", self.no_repeat_ngram, "at least 0")

    @property
    def end(self) -> int:
        """The eos, or -1, which no token equals, for a model without an end."""
        return -1 if self.eos is None else self.eos

    def apply(self, log_probs: Tensor, words: Tensor) -> Tensor:
        """Return a copy of log_probs [N, V] with -inf at all that may not follow words [N, t].

        ConfigError if log_probs is not [N, V] or a token id lies outside the vocabulary.
        """
        self._check_shape(log_probs, rows=words.shape[0])
        forbidden = list(self.banned)
        if self.eos is not None and words.shape[1] < self.min_length:
            forbidden.append(self.eos)
        if forbidden:
            ids = torch.tensor(forbidden, device=log_probs.device)
            log_probs = log_probs.index_fill(1, ids, -math.inf)
        if 0 < self.no_repeat_ngram <= words.shape[1]:
            log_probs = forbid_repeats(log_probs, words, self.no_repeat_ngram)
        return log_probs

    def _check_shape(self, log_probs: Tensor, rows: int) -> None:
        if log_probs.dim() != 2 or log_probs.shape[0] != rows:
            raise ConfigError(
                f"step must return log_probs [N, V] with N = {rows}, got {list(log_probs.shape)}"
            )
        for name, largest in (("eos", self.end), ("banned", max(self.banned, default=0))):
            size = log_probs.shape[1]
            require(largest < size, name, largest, f"below the vocabulary's size, {size}")


def forbid_repeats(log_probs: Tensor, words: Tensor, n: int) -> Tensor:
    """Return log_probs [N, V] with -inf where an n-gram of words [N, t], t >= n, would recur."""
    length = words.shape[1]
    ngrams = words.unfold(1, n, 1)
    begun = words[:, length - n + 1 :].unsqueeze(1)
    repeats = (ngrams[..., :-1] == begun).all(dim=-1)
    # a word may end several n-grams, some begun and some not: with the minimum a ban always wins
    caps = torch.where(repeats, -math.inf, math.inf).to(log_probs.dtype)
    return log_probs.scatter_reduce(1, ngrams[..., -1], caps, reduce="amin")


def check_log_probs(best: Tensor, position: int) -> None:
    """Raise NumericsError unless the best log-probability of each row [N] is at most 0."""
    # not (best <= limit) is true of NaN too; the slack is rounding in half precision
    wrong = ~(best <= 1e-2)
    if bool(wrong.any()):
        value = best[wrong][0].item()
        raise NumericsError(
            f"step returned {value} as a log-probability at word {position + 1} "
            f"({int(wrong.sum())} of {best.numel()} rows); expected numbers of at most 0, "
            "as log_softmax gives"
        )
