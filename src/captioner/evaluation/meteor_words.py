"""Which words METEOR matches: by the word itself, its stem, synonyms, paraphrases.

Stems come from nltk's Snowball stemmer. Synonyms (WordNet), paraphrases and METEOR's own list of
function words come from an installed pycocoevalcap, whose files are read without Java; nothing is
downloaded. Without it only words and stems match, and the list of function words is our own.
"""

import contextlib
import importlib.util
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioner.evaluation import compiled
from captioner.evaluation.ahead import Ahead
from captioner.evaluation.compiled import Words
from captioner.evaluation.paraphrases import packed_table, table_text

# METEOR gives function words a lower weight. Used where METEOR's own list is not installed.
_FUNCTION_WORDS = """
a an the this that these those some any all each every no both either neither such one i you
he she it we they me him her us them his hers its our their my your who whom whose which
what when where why how of in on at by for with from to into onto over under about as than
through up down out off between after before during while and or but nor so if then because
not n't is are was were be been being am has have had do does did will would can could may
might shall should must there here also more most other only 's
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
# WordNet's rules of detachment (morphy): an ending, and what may stand in its place.
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
    ("men", "man"), ("ies", "y"), ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"),
    ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)  # fmt: skip
_FILES = "function/english.words", "synonym/english.synsets", "synonym/english.exceptions"
Phrase = tuple[str, ...]


@dataclass(frozen=True)
class WordMatches:
    """The knowledge behind METEOR's modules; `modules` names those there is knowledge for."""

    modules: tuple[str, ...]
    function_words: frozenset[str] = FUNCTION_WORDS
    synsets: Mapping[str, str] = field(default_factory=dict)  # numbers, apart by spaces
    bases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    paraphrases: dict[Phrase, tuple[Phrase, ...]] = field(default_factory=dict)

    @cached_property
    def longest_phrase(self) -> dict[str, int]:
        """Words in the longest phrase with a paraphrase, by its first word."""
        longest: dict[str, int] = {}
        for phrase in self.paraphrases:
            longest[phrase[0]] = max(len(phrase), longest.get(phrase[0], 0))
        return longest

    @cached_property
    def meanings(self) -> Mapping[str, frozenset[str]]:
        """The synsets of a word and of its base form, found when they are asked for."""
        return _Remembered(self._meanings)

    def _meanings(self, word: str) -> frozenset[str]:
        bases = self.bases.get(word) or (self._base(word),)
        return frozenset(
            number for one in (word, *bases) for number in self.synsets.get(one, "").split()
        )

    def _base(self, word: str) -> str:
        stem, rest = (word[:-3], "ful") if word.endswith("ful") else (word, "")
        if stem.endswith("ss") or len(word) <= 2:
            return word
        for ending, instead in _ENDINGS:
            if stem.endswith(ending) and (found := stem[: -len(ending)] + instead) in self.synsets:
                return found + rest
        return ""


class _Remembered(dict[str, frozenset[str]]):
    """What a function finds for words, each found once."""

    def __init__(self, find: Callable[[str], frozenset[str]]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, word: str) -> frozenset[str]:
        self[word] = found = self._find(word)
        return found


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem.snowball import SnowballStemmer  # imports scipy.stats: two seconds

    return SnowballStemmer("english")


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The word's stem by the English Snowball stemmer."""
    return str(_stemmer().stem(word))


@lru_cache(maxsize=1)
def load_knowledge(vocabulary: frozenset[str]) -> tuple[tuple[str, ...], WordMatches | Words]:
    """The modules there is knowledge for, and all that is installed for the words in `vocabulary`:
    in the library where it is built, many times as fast.

    The last vocabulary's are cached: without the library it takes seconds to read the paraphrases.
    """
    if not compiled.available():
        known = load_word_matches(vocabulary)
        return known.modules, known
    known, table = _without_paraphrases(*_installed())
    words = compile_words(known, vocabulary)
    if table is not None:
        words.read(next(iter(_ahead.pop())) if _ahead else packed_table(table))
    return known.modules, words


_ahead: list[Ahead[NDArray[np.int32]]] = []  # at most one


@contextlib.contextmanager
def reading_ahead(metrics: Collection[str]) -> Iterator[None]:
    """Where METEOR-py is among the metrics a thread reads the table of paraphrases, which takes
    seconds the first time, for the first `load_knowledge` inside."""
    _, table = _installed()
    if table is None or "METEOR-py" not in metrics or not compiled.available():
        yield
        return
    _ahead[:] = [tables := Ahead(map(packed_table, [table]), most=1)]
    try:
        yield
    finally:
        tables.close()
        _ahead.clear()


def load_word_matches(vocabulary: frozenset[str]) -> WordMatches:
    """All that is installed, of the paraphrases those whose words are in `vocabulary`."""
    known, table = _without_paraphrases(*_installed())
    return known if table is None else replace(known, paraphrases=_paraphrases(table, vocabulary))


def compile_words(known: WordMatches, vocabulary: frozenset[str]) -> Words:
    """What is known of some words, for the library."""
    words, numbers = sorted(vocabulary), defaultdict[str, int](count().__next__)
    compiled_words = Words(
        words,
        [word in known.function_words for word in words],
        [[*map(numbers.__getitem__, known.meanings[word])] for word in words],
    )
    entries = (
        f"0\n{' '.join(phrase)}\n{' '.join(other)}\n".encode()
        for phrase, others in known.paraphrases.items()
        for other in others
    )
    compiled_words.read(compiled.pack_paraphrases(entries))
    return compiled_words


@lru_cache(maxsize=1)
def _without_paraphrases(jar: Path | None, table: Path | None) -> tuple[WordMatches, Path | None]:
    """All that is installed but the paraphrases, and the table of these."""
    if jar is None:
        return WordMatches(("exact", "stem")), None
    with zipfile.ZipFile(jar) as archive:
        words, synsets, exceptions = (archive.read(name).decode().splitlines() for name in _FILES)
    bases: dict[str, list[str]] = defaultdict(list)
    for base, forms in _pairs(exceptions):
        for form in forms.split():
            bases[form].append(base)
    known = WordMatches(
        ("exact", "stem", "synonym", *(("paraphrase",) if table else ())),
        frozenset(word.strip() for word in words if word.strip()),
        dict(_pairs(synsets)),
        {form: tuple(found) for form, found in bases.items()},
    )
    return known, table


def pycocoevalcap_file(*parts: str) -> Path | None:
    """A file of an installed pycocoevalcap."""
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = (spec.submodule_search_locations or []) if spec else []
    paths = (Path(folder, *parts) for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _installed() -> tuple[Path | None, Path | None]:
    """METEOR's jar and its table of paraphrases."""
    table = pycocoevalcap_file("meteor", "data", "paraphrase-en.gz")
    return pycocoevalcap_file("meteor", "meteor-1.5.jar"), table


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    return zip(lines[::2], lines[1::2], strict=True)


def _paraphrases(table: Path, vocabulary: frozenset[str]) -> dict[Phrase, tuple[Phrase, ...]]:
    """Phrases with their paraphrases; the file has a probability and two phrases, a line each."""
    known = {word.encode() for word in vocabulary}
    found: dict[bytes, list[bytes]] = defaultdict(list)
    phrase, wanted = b"", False
    for entry, other in _entries(table_text(table)):  # millions, as bytes, of which few are decoded
        if entry != phrase:  # a phrase's entries follow each other
            phrase, wanted = entry, known.issuperset(entry.split())
        if wanted and known.issuperset(other.split()):
            found[phrase].append(other)
    return {_words(phrase): tuple(map(_words, others)) for phrase, others in found.items()}


def _entries(parts: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The second and third of every three lines."""
    lines: list[bytes] = []
    for part in parts:
        before = lines.pop() if lines else b""  # the beginning of a line
        lines += (before + part).split(b"\n")
        whole = (len(lines) - 1) // 3 * 3
        yield from zip(lines[1:whole:3], lines[2:whole:3], strict=True)
        del lines[:whole]


def _words(phrase: bytes) -> Phrase:
    return tuple(phrase.decode().split())
