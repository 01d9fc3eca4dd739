"""Words and their ids, built from the training split only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypedDict

from captioner.data.captions import duplicates
from captioner.errors import DataError
from captioner.files import parse_json
from captioner.restore import restore

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)
RARE = ("unk", "drop")


class _State(TypedDict):
    """What is stored of a vocabulary."""

    words: list[str]
    counts: list[int]
    rare: str


class Vocabulary:
    """A fixed list of tokens: the four special ones first, then words, most frequent first.

    An unlisted word is encoded as `<unk>` (`rare` "unk") or left out ("drop"). `counts`: how often
    each token occurs in the encoded training captions.
    """

    def __init__(self, words: Sequence[str], *, counts: Sequence[int], rare: str = "unk") -> None:
        self.tokens = [*SPECIAL, *words]
        if twice := duplicates(self.tokens):
            raise DataError(f"the vocabulary lists {twice[0]!r} more than once")
        if len(counts) != len(self.tokens):
            raise DataError(
                f"the vocabulary has {len(self.tokens)} tokens but {len(counts)} counts"
            )
        if rare not in RARE:
            raise DataError(f"rare must be one of {', '.join(RARE)}, got {rare!r}")
        self.counts = list(counts)
        self.rare = rare
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        self.pad, self.bos, self.eos, self.unk = range(4)

    @classmethod
    def build(
        cls,
        captions: Iterable[Iterable[str]],
        *,
        min_count: int = 5,
        rare: str = "unk",
        item: str = "word",
        of: str = "captions",
    ) -> Vocabulary:
        """Keep every word seen at least `min_count` times; ties are ordered alphabetically.

        DataError when no word is left; `item` and `of` are what it calls words and captions.
        """
        frequency: Counter[str] = Counter()
        number = 0
        for caption in captions:
            frequency.update(caption)
            number += 1
        ranked = sorted(frequency.items(), key=lambda item: (-item[1], item[0]))
        # Published corpora write <unk> themselves; it is no word of its own.
        kept = [(word, n) for word, n in ranked if n >= min_count and word not in SPECIAL]
        if not kept:
            best = f"no {item}"
            if ranked:
                best = f"the commonest, {ranked[0][0]!r}, {ranked[0][1]} times"
            raise DataError(
                f"the vocabulary is empty: no {item} occurs min_count={min_count} times in "
                f"{number} training {of} ({best})"
            )
        unknown = frequency.total() - sum(n for _, n in kept) if rare == "unk" else 0
        counts = [0, 0, number, unknown, *(count for _, count in kept)]
        return cls([word for word, _ in kept], counts=counts, rare=rare)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._state() == other._state()

    __hash__ = None  # type: ignore[assignment]

    def encode(self, words: Sequence[str]) -> list[int]:
        """Ids of the words, without `<bos>` and `<eos>`."""
        ids = (self._ids.get(word, self.unk) for word in words)
        return [number for number in ids if number != self.unk or self.rare == "unk"]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words of the ids; special tokens but `<unk>` are left out."""
        return [self.tokens[number] for number in ids if number >= self.unk]

    def _state(self) -> _State:
        return {"words": self.tokens[len(SPECIAL) :], "counts": self.counts, "rare": self.rare}

    def to_json(self) -> str:
        """The whole vocabulary as JSON text."""
        return json.dumps(self._state(), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = "the vocabulary") -> Vocabulary:
        """The vocabulary that `to_json` wrote; DataError naming `source` for something else."""
        state: _State = restore(_State, parse_json(text, source), source)
        if min(state["counts"], default=0) < 0:
            raise DataError(f"{source}: counts must not be negative, found {min(state['counts'])}")
        try:
            return cls(state["words"], counts=state["counts"], rare=state["rare"])
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
