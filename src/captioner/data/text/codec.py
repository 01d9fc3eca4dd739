"""Text to token ids and back: by characters, by bytes, or by words.

A stream begins every document with `<bos>`, which therefore also follows its last token. Words are
separated by spaces, and `<eos>` ends every line.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain

import numpy as np

from captioner.data.text.files import Document
from captioner.data.vocabulary import SPECIAL, Vocabulary
from captioner.errors import DataError

UNITS = ("character", "byte", "word")
_SHOWN = 5  # unknown tokens that a message lists


def build_vocabulary(documents: Sequence[Document], *, unit: str, min_count: int) -> Vocabulary:
    """The tokens of the training text seen at least `min_count` times (DataError without any); all
    256 for bytes."""
    if unit == "byte":
        counts = np.zeros(256, dtype=np.int64)
        for block in (block for document in documents for block in document.blocks()):
            counts += np.bincount(np.frombuffer(block, np.uint8), minlength=256)
        vocabulary = Vocabulary([chr(k) for k in range(256)], counts=[0] * 4 + counts.tolist())
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


class TextCodec:
    """Encodes and decodes text of one unit with one vocabulary."""

    def __init__(self, unit: str, vocabulary: Vocabulary) -> None:
        if unit not in UNITS:
            raise DataError(f"the unit must be one of {', '.join(UNITS)}, got {unit!r}")
        if unit == "byte" and vocabulary.tokens[len(SPECIAL) :] != [chr(k) for k in range(256)]:
            raise DataError(
                f"a vocabulary of bytes has all 256 in their order, found {len(vocabulary)} tokens"
            )
        self.unit, self.vocabulary = unit, vocabulary

    def encode_document(self, document: Document) -> Iterator[np.ndarray]:
        """Its token ids, int64, in parts, without the `<bos>` before it."""
        if self.unit == "byte":
            yield from (np.frombuffer(b, np.uint8).astype(np.int64) + 4 for b in document.blocks())
        elif self.unit == "word":
            for line in _lines(document.pieces()):
                ids = self.vocabulary.encode(line.split())
                yield np.array([*ids, self.vocabulary.eos], dtype=np.int64)
        else:
            for text in document.pieces():
                yield self._by_point[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, whose last line gets no `<eos>`; DataError names unknown tokens."""
        if self.unit == "byte":
            return [4 + byte for byte in text.encode("utf-8")]
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
        return text.encode("latin-1").decode("utf-8", "replace") if self.unit == "byte" else text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each token adds to the text: a byte as the character of that number (latin-1)."""
        vocabulary = self.vocabulary
        silent = (vocabulary.pad, vocabulary.bos)
        texts = ["" if number in silent else vocabulary.tokens[number] for number in ids]
        if self.unit != "word":
            return texts
        end = vocabulary.tokens[vocabulary.eos]
        return ["\n" if text == end else f"{text} " for text in texts]

    @cached_property
    def _by_point(self) -> np.ndarray:
        """Token ids by code point: a lookup for all characters at once."""
        table = np.full(0x110000, self.vocabulary.unk, dtype=np.int64)
        for number, token in enumerate(self.vocabulary.tokens):
            if len(token) == 1:
                table[ord(token)] = number
        return table


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lines without their ends, the last one also where nothing ends it."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest
