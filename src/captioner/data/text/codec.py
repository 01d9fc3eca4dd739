"""Text to token ids and back: by characters, by bytes, by byte pairs, or by words.

A stream begins every document with `<bos>`, which therefore also follows its last token. Words are
separated by spaces, and `<eos>` ends every line.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain

import numpy as np

from captioner.data.text.bpe import BYTES, BytePairs, learn_pairs
from captioner.data.text.files import Document
from captioner.data.vocabulary import SPECIAL, Vocabulary
from captioner.errors import DataError

UNITS = ("character", "byte", "word", "bpe")
OF_BYTES = ("byte", "bpe")  # whose tokens are bytes, as text in latin-1
PAIRS = 4096  # tokens of bpe, unless their number is given
_SHOWN = 5  # unknown tokens that a message lists


def unit_name(unit: str) -> str:
    """What a token of this unit is called."""
    return {"bpe": "byte pair"}.get(unit, unit)


def build_vocabulary(
    documents: Sequence[Document], *, unit: str, min_count: int, size: int | None = None
) -> Vocabulary:
    """The tokens of the training text seen at least `min_count` times (DataError without any); all
    256 for bytes, and for byte pairs these and pairs so frequent, `size` (PAIRS) at most."""
    if unit == "bpe":
        vocabulary = _byte_pairs(documents, size=size or PAIRS, min_count=min_count)
    elif unit == "byte":
        counts = np.zeros(256, dtype=np.int64)
        for block in (block for document in documents for block in document.blocks()):
            counts += np.bincount(np.frombuffer(block, np.uint8), minlength=256)
        vocabulary = Vocabulary(BYTES, counts=[0] * 4 + counts.tolist())
    elif unit == "word":
        lines = (line.split() for document in documents for line in _lines(document.pieces()))
        vocabulary = Vocabulary.build(lines, min_count=min_count, of="lines")
    else:
        texts = (chain.from_iterable(document.pieces()) for document in documents)
        vocabulary = Vocabulary.build(texts, min_count=min_count, item="character", of="documents")
    # As they are predicted: a document's end by the next one's <bos>, a line's by <eos>.
    vocabulary.counts[vocabulary.bos] = len(documents) - 1
    if unit != "word":
        vocabulary.counts[vocabulary.eos] = 0
    return vocabulary


def _byte_pairs(documents: Sequence[Document], *, size: int, min_count: int) -> Vocabulary:
    """The tokens that `learn_pairs` finds, and how often each is in the text encoded by them."""
    lines = (line for one in documents for line in _lines(one.pieces(), ends=True))
    tokens = learn_pairs(lines, size=size, min_count=min_count)
    counts, pairs = np.zeros(len(tokens), dtype=np.int64), BytePairs(tokens)
    for document in documents:
        for ids in pairs.encode(_lines(document.pieces(), ends=True)):
            counts += np.bincount(ids, minlength=len(tokens))
    return Vocabulary(tokens, counts=[0] * len(SPECIAL) + counts.tolist())


class TextCodec:
    """Encodes and decodes text of one unit with one vocabulary."""

    def __init__(self, unit: str, vocabulary: Vocabulary) -> None:
        if unit not in UNITS:
            raise DataError(f"the unit must be one of {', '.join(UNITS)}, got {unit!r}")
        words = vocabulary.tokens[len(SPECIAL) :]
        if unit in OF_BYTES and (words[:256] != BYTES or (unit == "byte" and words != BYTES)):
            raise DataError(
                f"a vocabulary of {unit_name(unit)}s has all 256 bytes first, in their order, "
                f"found {len(vocabulary)} tokens"
            )
        self.unit, self.vocabulary = unit, vocabulary

    def encode_document(self, document: Document) -> Iterator[np.ndarray]:
        """Its token ids, int64, in parts, without the `<bos>` before it."""
        if self.unit == "byte":
            yield from (np.frombuffer(b, np.uint8).astype(np.int64) + 4 for b in document.blocks())
        elif self.unit == "bpe":
            yield from self._byte_pairs(_lines(document.pieces(), ends=True))
        elif self.unit == "word":
            for line in _lines(document.pieces()):
                ids = self.vocabulary.encode(line.split())
                yield np.array([*ids, self.vocabulary.eos], dtype=np.int64)
        else:
            for text in document.pieces():
                yield self._by_point[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, whose last line gets no `<eos>`; DataError names unknown tokens."""
        if self.unit in OF_BYTES:
            # A command line's bytes that are no UTF-8 are bytes as they are, but of no pair.
            errors = "surrogateescape" if self.unit == "byte" else "strict"
            try:
                single = [len(SPECIAL) + byte for byte in text.encode("utf-8", errors)]
            except UnicodeEncodeError as error:
                what = f"{text[error.start]!r} at {error.start} is no character"
                raise DataError(f"the prompt cannot be encoded: {what}") from error
            if self.unit == "byte" or not single:
                return single
            return [int(k) for ids in self._byte_pairs(_lines([text], ends=True)) for k in ids]
        tokens: list[str] = [*text]
        if self.unit == "word":
            tokens = text.replace("\n", f" {self.vocabulary.tokens[self.vocabulary.eos]} ").split()
        unknown = [token for token in dict.fromkeys(tokens) if token not in self.vocabulary]
        if unknown:
            where = f"; the first at {text.index(unknown[0])}" if self.unit == "character" else ""
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise DataError(
                f"the prompt cannot be encoded: the model has no {self.unit} "
                f"{', '.join(map(repr, unknown[:_SHOWN]))}{more}{where}"
            )
        return self.vocabulary.encode(tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; `<pad>` and `<bos>` are left out."""
        text = "".join(self.pieces(ids))
        if self.unit in OF_BYTES:
            return text.encode("latin-1").decode("utf-8", "replace")
        return text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each token adds to the text: bytes as the characters of their numbers (latin-1)."""
        vocabulary = self.vocabulary
        silent = (vocabulary.pad, vocabulary.bos)
        texts = ["" if number in silent else vocabulary.tokens[number] for number in ids]
        if self.unit != "word":
            return texts
        end = vocabulary.tokens[vocabulary.eos]
        return ["\n" if text == end else f"{text} " for text in texts]

    def shown(self, ids: Iterable[int]) -> list[str]:
        """The pieces for a reader: bytes that are whole characters as these."""
        pieces = self.pieces(ids)
        return [*map(_characters, pieces)] if self.unit in OF_BYTES else pieces

    def _byte_pairs(self, lines: Iterable[str]) -> Iterator[np.ndarray]:
        return (len(SPECIAL) + ids for ids in self._pairs.encode(lines))

    @cached_property
    def _pairs(self) -> BytePairs:
        return BytePairs(self.vocabulary.tokens[len(SPECIAL) :])

    @cached_property
    def _by_point(self) -> np.ndarray:
        """Token ids by code point: a lookup for all characters at once."""
        table = np.full(0x110000, self.vocabulary.unk, dtype=np.int64)
        for number, token in enumerate(self.vocabulary.tokens):
            if len(token) == 1:
                table[ord(token)] = number
        return table


def _characters(piece: str) -> str:
    """Bytes in latin-1 as the characters that they are in UTF-8; unchanged where they are none."""
    try:
        return piece.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return piece


def _lines(pieces: Iterable[str], *, ends: bool = False) -> Iterator[str]:
    """Lines, with their `ends` or without, the last one also where nothing ends it."""
    rest, end = "", "\n" if ends else ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from (line + end for line in whole)
    if rest:
        yield rest
