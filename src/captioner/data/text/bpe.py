"""Byte pairs (Sennrich et al. 2016; over bytes as in GPT-2), through the library tokenizers.

A token is a string of bytes, as text in latin-1: the 256 bytes first, then what pairs were joined
to, in the order in which they were learned. That order alone says how a text is encoded: of the
neighbours whose joint bytes are a token those are joined whose token comes first. Lines are encoded
one by one, each with its end, and no token goes over what GPT-2's pattern separates (words with the
space before them, numbers, punctuation, spaces).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np

from captioner.errors import ConfigError, DataError

BYTES = [chr(k) for k in range(256)]
_LINES = 10_000  # encoded at a time
# GPT-2's own character for each byte, by which tokenizers writes tokens: the printable stand for
# themselves, the others follow one another from 256 on.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_CHARACTERS = {k: chr(k) for k in _PRINTED} | {
    byte: chr(256 + k) for k, byte in enumerate(sorted({*range(256)} - {*_PRINTED}))
}
_BYTES = {character: chr(byte) for byte, character in _CHARACTERS.items()}


def learn_pairs(lines: Iterable[str], *, size: int, min_count: int) -> list[str]:
    """At most `size` tokens of lines with their ends, the 256 bytes among them: pairs that occur
    `min_count` times, the most frequent first."""
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_count,
        initial_alphabet=[*_BYTES],
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    numbers = tokenizer.get_vocab()
    learned = (one for one in sorted(numbers, key=numbers.__getitem__) if len(one) > 1)
    return [*BYTES, *("".join(_BYTES[character] for character in one) for one in learned)]


class BytePairs:
    """Encodes text by tokens in their order; DataError unless they are what `learn_pairs` gives."""

    def __init__(self, tokens: Sequence[str]) -> None:
        library = _library()
        merges = [(_written(first), _written(second)) for first, second in _pairs(tokens)]
        model = library.models.BPE({_written(one): k for k, one in enumerate(tokens)}, merges)
        self._tokenizer = library.Tokenizer(model)
        split = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.pre_tokenizer = split

    def encode(self, lines: Iterable[str]) -> Iterator[np.ndarray]:
        """The tokens' numbers, int64, of lines with their ends, some lines at a time."""
        left = iter(lines)
        while some := [*islice(left, _LINES)]:
            found = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
            yield np.array([number for one in found for number in one.ids], dtype=np.int64)


def _written(token: str) -> str:
    return "".join(_CHARACTERS[ord(byte)] for byte in token)


def _pairs(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pair that each token after the bytes was joined from: what it is of tokens before it."""
    rank = {token: k for k, token in enumerate(tokens)}
    for number, token in enumerate(tokens[256:], start=256):
        parts = [*token]
        while len(parts) > 2:
            joined = [a + b for a, b in pairwise(parts)]
            at = min(range(len(joined)), key=lambda k: rank.get(joined[k], number))
            if rank.get(joined[at], number) >= number:
                break
            parts[at : at + 2] = [joined[at]]
        if len(parts) != 2 or not all(part in rank for part in parts):
            raise DataError(f"the vocabulary's token {token!r} is no pair of tokens before it")
        yield parts[0], parts[1]


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "data.unit=bpe needs the package tokenizers: pip install 'captioner[bpe]'"
        ) from error
    return tokenizers
