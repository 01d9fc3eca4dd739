"""The library of csrc/evaluation gives to the last bit what Python gives without it."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from nltk.stem.snowball import SnowballStemmer

from captioner.data.tokenize import coco_tokens
from captioner.errors import DataError
from captioner.evaluation import compiled, corpus, meteor_words, paraphrases
from captioner.evaluation.compiled import Words
from captioner.evaluation.corpus import Corpus, encode
from captioner.evaluation.meteor import meteor, normalised
from captioner.evaluation.meteor_words import WordMatches, compile_words
from captioner.evaluation.metric import Metric
from captioner.evaluation.metrics import ScoringOptions, measure

pytestmark = pytest.mark.skipif(
    not compiled.available(), reason="the library of csrc/evaluation is not built here"
)
T = TypeVar("T")
InPython = Callable[[Callable[[], T]], T]

# Pieces that the tokeniser reads with their neighbours, or takes apart, among plain words.
_WORDS = """
a the dog dogs cat kitten man takes take took part participate participates runs running run ran
water t-shirt man's 's café a. A&B &amp; Fig. <unk> isn't -- in front of
"""
WORDS = _WORDS.split()
BARE = WordMatches(("exact", "stem"))
KNOWN = WordMatches(
    ("exact", "stem", "synonym", "paraphrase"),
    synsets={"cat": "1 2", "kitten": "2 3", "run": "4", "dog": "5 6 7", "man": "7"},
    bases={"ran": ("run",), "took": ("take",)},
    paraphrases={
        ("take", "part"): (("participate",),),
        ("takes", "part"): (("participates",), ("takes", "part", "in")),
        ("participates",): (("takes", "part"), ("runs",)),
        ("in", "front", "of"): (("the",), ("of",)),
        ("the",): (("a",),),
    },
)
_ENDINGS = """
's' 's ' sses ied ies us ss s eedly ingly edly eed ing ed ization ational fulness ousness iveness
tional biliti lessli entli ation alism aliti ousli iviti fulli enci anci abli izer ator alli bli
ogi li alize icate iciti ative ical ness ful ement ance ence able ible ment ant ent ism ate iti ous
ive ize ion al er ic e l at bl iz y é \u2019 gener commun arsen
"""
ENDINGS = _ENDINGS.split()
LETTERS = "aeiouybcdfglmnrstwxk'"


def drawn(seed: int, *, images: int = 60, longest: int = 9) -> tuple[list[list[str]], list[str]]:
    """References and hypotheses, some of them empty, some equal."""
    draw = random.Random(seed)

    def caption() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(0, longest)))

    references = [[caption() for _ in range(draw.randint(1, 6))] for _ in range(images)]
    hypotheses = [draw.choice([caption(), *of_image]) for of_image in references]
    hypotheses[0], references[0][0] = "a\n dog\x1cruns\u2003in water", "a dog runs in water"
    return references, hypotheses


def words_of(seed: int, **sizes: int) -> Corpus:
    """For METEOR: hypotheses of other images, which hardly equal a reference."""
    references, hypotheses = drawn(seed, **sizes)
    return normalised(encode(references, [*hypotheses[1:], hypotheses[0]], coco_tokens))


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> InPython:
    """Calls a function as where the library is not built."""

    def call(function: Callable[[], T]) -> T:
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "available", lambda: False)
            return function()

    return call


def bits(*metrics: Metric) -> dict[str, bytes]:
    return {m.name: m.per_image.tobytes() + m.statistics.tobytes() for m in metrics}


@pytest.mark.parametrize("protocol", ["coco", "neuraltalk"])
def test_the_library_scores_as_python_does(in_python: InPython, protocol: str) -> None:
    for images, longest in ((1, 9), (60, 9), (60, 90)):
        captions = drawn(images, images=images, longest=longest)
        scored = partial(measure, *captions, ScoringOptions(protocol=protocol))
        ours, theirs = scored().metrics, in_python(scored).metrics
        assert bits(*ours.values()) == bits(*theirs.values())


@pytest.mark.parametrize("batch", [7, 100_000])
def test_the_library_numbers_words_as_python_does(
    in_python: InPython, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(corpus, "LARGE_BATCH", batch)
    encoded = partial(encode, *drawn(5, images=200), coco_tokens)
    ours, theirs = encoded(), in_python(encoded)
    assert list(ours.vocabulary) == list(theirs.vocabulary)
    for kind in ("hypotheses", "references"):
        one, other = getattr(ours, kind), getattr(theirs, kind)
        np.testing.assert_array_equal(one.words, other.words)
        np.testing.assert_array_equal(one.lengths, other.lengths)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_library_aligns_as_python_does(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    for images, longest in ((1, 9), (30, 9), (2, 90)):  # 64 words have a bit each
        words = words_of(images, images=images, longest=longest)
        theirs = meteor(words, KNOWN)
        ours = meteor(words, compile_words(KNOWN, frozenset(words.vocabulary)))
        assert bits(ours) == bits(theirs)
        assert images < 30 or theirs.value > meteor(words, BARE).value


def test_the_library_reads_a_table_of_paraphrases_in_any_parts(tmp_path: Path) -> None:
    words = words_of(2)
    vocabulary = frozenset(words.vocabulary) | set(WORDS)
    entries = [
        f"0.5\n{' '.join(phrase)}\n{' '.join(other)}\n"
        for phrase, others in KNOWN.paraphrases.items()
        for other in (("no-such-word",), *others)
    ]
    table = "".join(["1\nno such phrase\na\n", *entries]).encode()
    (tmp_path / "table.gz").write_bytes(gzip.compress(table))
    assert meteor_words._paraphrases(tmp_path / "table.gz", vocabulary) == KNOWN.paraphrases
    expected = bits(meteor(words, KNOWN))
    without = WordMatches(KNOWN.modules, synsets=KNOWN.synsets, bases=KNOWN.bases)
    for size in (1, 5, 1 << 20):
        known = compile_words(without, vocabulary)
        parts = (table[at : at + size] for at in range(0, len(table), size))
        known.read(compiled.pack_paraphrases(parts))
        assert bits(meteor(words, known)) == expected


def test_the_table_is_read_ahead_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "table.gz"
    table.write_bytes(gzip.compress(b"0.5\ntake part\nparticipate\n"))
    monkeypatch.setattr(meteor_words, "_installed", lambda: (None, table))
    monkeypatch.setattr(meteor_words, "_without_paraphrases", lambda *_: (BARE, table))
    words = normalised(encode([["they take part"]], ["they participate"], coco_tokens))
    with meteor_words.reading_ahead(["METEOR-py"]):
        for more in ("first", "second"):  # the second time from the file itself
            vocabulary = frozenset([*words.vocabulary, more])
            _, known = meteor_words.load_knowledge(vocabulary)
            assert meteor(words, known).value > meteor(words, BARE).value
    table.write_bytes(table.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"table\.gz is cut short"):
        meteor_words.load_knowledge(frozenset([*words.vocabulary, "third"]))


def test_the_packed_table_is_kept_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, cache = tmp_path / "table.gz", tmp_path / "cache"
    monkeypatch.setenv("CAPTIONER_CACHE", str(cache))
    pack, packed = compiled.pack_paraphrases, list[int]()
    counting = lambda parts: packed.append(1) or pack(parts)  # noqa: E731
    monkeypatch.setattr(compiled, "pack_paraphrases", counting)

    def times_packed(text: bytes) -> int:
        table.write_bytes(gzip.compress(text, mtime=0))
        before = len(packed)
        np.testing.assert_array_equal(paraphrases.packed_table(table), pack([text]))
        return len(packed) - before

    one, other = b"0.5\ntake part\nparticipate\n", b"0.5\ntake part\nparticipates\n"
    assert [times_packed(text) for text in (one, one, other, one)] == [1, 0, 1, 0]
    for content in (b"", b"x", b"\0" * 40, *(kept.read_bytes()[:-4] for kept in cache.iterdir())):
        for kept in cache.iterdir():
            kept.write_bytes(content)
        assert [times_packed(one), times_packed(one)] == [1, 0]
    monkeypatch.setenv("CAPTIONER_CACHE", str(table / "no-folder"))
    assert [times_packed(one), times_packed(one)] == [1, 1]


def test_the_library_finds_the_stems_that_nltk_finds() -> None:
    draw = random.Random(0)
    words = ["skis", "dying", "news", "inning", "outings", "proceed", "exceeding", "y", "'", "é"]
    for _ in range(4000):
        parts = (draw.choice(ENDINGS if draw.random() < 0.4 else LETTERS) for _ in range(6))
        words.append("".join(islice(parts, draw.randint(1, 6))))
    stemmer = SnowballStemmer("english")
    assert compiled.stems(words) == [stemmer.stem(word) for word in words]


def test_the_library_is_not_taken_where_it_is_absent_or_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "damaged.so").write_bytes(b"not a library")
    with monkeypatch.context() as patch:
        for named in ("python", str(tmp_path / "damaged.so")):
            patch.setenv("CAPTIONER_SCORING", named)
            assert compiled._library.__wrapped__() is None
    assert compiled._library.__wrapped__() is not None
    monkeypatch.setattr(compiled, "VERSION", compiled.VERSION + 1)
    assert compiled._library.__wrapped__() is None


def test_what_is_known_of_words_is_kept_for_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor_words, "_installed", lambda: (None, None))
    modules, known = meteor_words.load_knowledge(frozenset({"dogs", "dog"}))
    assert modules == ("exact", "stem") and isinstance(known, Words)
    assert meteor_words.load_knowledge(frozenset({"dog", "dogs"}))[1] is known
