"""What scoring takes longest for, compiled from csrc/evaluation; the arrays are numpy's.

Each function gives to the last bit what the Python beside its caller gives, which is used where
`available` is False: where the library is not built, or CAPTIONER_SCORING=python asks for it. It is
no module of Python and needs no PyTorch: ctypes loads it, and lets other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
VERSION = 2  # csrc/evaluation/scoring.h
_int, _pointer = ctypes.c_int64, ctypes.c_void_p
_ROWS = (_pointer, _pointer, _pointer, _int)  # words, starts, first rows, images
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "pieces": (_pointer, _int, *[_pointer] * 5),
    "stems": (_pointer, _int, _pointer, _pointer),
    "ngrams": (*_ROWS, _int, _pointer, _int, *[_pointer] * 4),
    "lcs": (*_ROWS, _int, _pointer),
    "words_paraphrases": (_pointer, _pointer),
    "table_read": (_pointer, _pointer, _int),
    "table_pack": (_pointer, _pointer, _pointer),
    "meteor": (_pointer, *_ROWS, _int, _pointer),
}


@cache
def _library() -> ctypes.CDLL | None:
    """The library, or the build of it that CAPTIONER_SCORING names; None where it is not built, is
    of other sources, or CAPTIONER_SCORING is "python"."""
    named = os.environ.get("CAPTIONER_SCORING")
    built = [Path(named)] if named else [*Path(__file__).parent.glob("_scoring.*")]
    try:
        library = ctypes.CDLL(str(built[0]))
        if library.captioner_scoring_version() != VERSION:
            return None
    except (OSError, IndexError, AttributeError):
        return None
    for name, types in _FUNCTIONS.items():
        getattr(library, f"captioner_{name}").argtypes = types
    library.captioner_words_new.argtypes = [_pointer, _int, *[_pointer] * 4]
    library.captioner_words_new.restype = _pointer
    library.captioner_table_new.restype = _pointer
    for kind in ("words", "table"):
        getattr(library, f"captioner_{kind}_free").argtypes = [_pointer]
    return library


def available() -> bool:
    """Whether the functions here can be called."""
    return _library() is not None


def threads() -> int:
    """How many threads score: OMP_NUM_THREADS, as elsewhere, or one a core of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the library with addresses in place of arrays."""
    passed = [x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments]
    if getattr(_library(), f"captioner_{name}")(*passed):
        raise MemoryError(f"scoring ({name}) needs more memory than there is")


class Rows(NamedTuple):
    """Sentences image by image, the hypothesis first, then its references: words [N], where each
    sentence begins and the last ends, [R + 1], and the row of each image's hypothesis, with the
    number of rows at the end, [I + 1]."""

    words: NDArray[np.int32]
    starts: Ints
    first_row: Ints

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.first_row) - 1

    @property
    def references(self) -> int:
        """How many references there are."""
        return int(self.first_row[-1]) - self.images


def pieces(captions: Sequence[str]) -> tuple[NDArray[np.int32], Ints, list[str]]:
    """What stands between spaces, numbered in order of first occurrence: the number of every piece,
    [P], how many each caption has, [S], and the pieces."""
    text = "\n".join([*captions, ""])
    if text.count("\n") > len(captions):
        text = "\n".join([*(one.replace("\n", " ") for one in captions), ""])
    data = text.encode(errors="surrogatepass")
    number, counts = np.empty(len(data) // 2, np.int32), np.empty(len(captions), np.int64)
    first, last = np.empty((2, len(data) // 2), np.int64)
    distinct = ctypes.c_int64()
    _call("pieces", data, len(data), number, counts, first, last, ctypes.addressof(distinct))
    bounds = zip(first[: distinct.value].tolist(), last.tolist(), strict=False)
    found = [data[begin:end].decode(errors="surrogatepass") for begin, end in bounds]
    return number[: counts.sum()].copy(), counts, found


def stems(words: Iterable[str]) -> list[str]:
    """The words' stems by the English Snowball stemmer, as nltk's."""
    data = _lines(word.lower() for word in words)
    out, size = ctypes.create_string_buffer(len(data) + 1), ctypes.c_int64()
    _call("stems", data, len(data), ctypes.addressof(out), ctypes.addressof(size))
    return out.raw[: size.value].decode().split("\n")[:-1]


def ngrams(rows: Rows, vocabulary: int, rarity: Floats) -> tuple[Floats, Floats]:
    """BLEU's matches, [I, 4]; of each row, by order, its squared length and its products with the
    hypothesis, clipped and not, [3, 4, R]. `rarity` [I + 1] is that of an n-gram in so many
    images."""
    matches = np.empty((rows.images, 4))
    sums = np.empty((3, 4, int(rows.first_row[-1])))
    _call("ngrams", *rows, rows.images, vocabulary, rarity, threads(), matches, *sums)
    return matches, sums


def lcs_lengths(rows: Rows) -> Ints:
    """The longest common subsequence of each reference with its hypothesis, [S]; of two empty
    sentences 1."""
    common = np.empty(rows.references, np.int64)
    _call("lcs", *rows, rows.images, threads(), common)
    return common


def pack_paraphrases(parts: Iterable[bytes]) -> NDArray[np.int32]:
    """The table of paraphrases, in any parts, in numbers of 32 bits: see
    csrc/evaluation/paraphrases.h."""
    library = _library()
    assert library is not None
    table = library.captioner_table_new()
    if not table:
        raise MemoryError("the paraphrases of METEOR-py need more memory than there is")
    try:
        for part in parts:
            _call("table_read", table, part, len(part))
        packed, size = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_int64()
        _call("table_pack", table, ctypes.addressof(packed), ctypes.addressof(size))
        return np.ctypeslib.as_array(packed, (size.value,)).copy()
    finally:
        library.captioner_table_free(table)


class Words:
    """METEOR-py's knowledge of some words, each numbered: stems, whether it is a function word, its
    synsets' numbers; and the paraphrases that `read` finds."""

    def __init__(
        self, words: Sequence[str], is_function: Sequence[bool], synsets: Sequence[Sequence[int]]
    ) -> None:
        self.numbers = {word: number for number, word in enumerate(words)}
        stem_numbers: dict[str, int] = {}
        stem = [stem_numbers.setdefault(one, len(stem_numbers)) for one in stems(words)]
        begin = [0, *accumulate(map(len, synsets))]
        flat = [number for of_word in synsets for number in sorted(of_word)]
        kinds = (np.int32, np.uint8, np.int32, np.int32)
        arrays = [*map(np.array, (stem, is_function, begin, flat), kinds)]
        data, library = _lines(words), _library()
        assert library is not None
        addresses = (x.ctypes.data for x in arrays)
        self._words = library.captioner_words_new(data, len(data), *addresses)
        if not self._words:
            raise MemoryError("the words of METEOR-py need more memory than there is")
        weakref.finalize(self, library.captioner_words_free, self._words)

    def read(self, packed: NDArray[np.int32]) -> None:
        """Take those of a table's paraphrases, as `pack_paraphrases` gives it, whose words are all
        among these."""
        _call("words_paraphrases", self._words, packed)

    def statistics(self, rows: Rows) -> Floats:
        """METEOR-py's statistics of each reference, [S, 6]; the words are numbered as here."""
        table = np.empty((rows.references, 6))
        _call("meteor", self._words, *rows, rows.images, threads(), table)
        return table


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode(errors="surrogatepass")
