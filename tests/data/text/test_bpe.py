"""Byte pairs: what is learned, how a text is encoded by it, and what comes back."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.data.text.bpe import BYTES, BytePairs, learn_pairs
from captioner.data.text.codec import TextCodec, build_vocabulary
from captioner.data.text.files import Document
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError, DataError

pytest.importorskip("tokenizers")
TEXT = "the cat sat on the mat,\nthe other cat sat there \N{EURO SIGN} \N{EURO SIGN}\n\n" * 3


def codec(tmp_path: Path, text: str = TEXT, size: int = 280, min_count: int = 2) -> TextCodec:
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    documents = [Document(path, 0, path.stat().st_size)]
    vocabulary = build_vocabulary(documents, unit="bpe", min_count=min_count, size=size)
    return TextCodec("bpe", vocabulary)


def by_hand(word: str, rank: dict[str, int]) -> list[str]:
    """The definition, within a word: the neighbours that are the earliest token are joined."""
    parts = [*word]
    while True:
        known = [(rank[a + b], k) for k, (a, b) in enumerate(pairwise(parts)) if a + b in rank]
        if not known:
            return parts
        at = min(known)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_the_most_frequent_pairs_are_learned_first() -> None:
    tokens = learn_pairs(["ababab cd\n"] * 4 + ["cd"], size=260, min_count=1)
    assert tokens[:256] == BYTES
    # ab occurs twelve times, abab then eight; cd and the like five.
    assert tokens[256] == "ab" and "abab" in tokens and len(tokens) == 260
    few = learn_pairs(["ab\n"], size=300, min_count=2)
    assert few == BYTES


def test_a_text_comes_back_and_is_encoded_by_the_order_of_its_tokens(tmp_path: Path) -> None:
    text = codec(tmp_path)
    ids = text.encode(TEXT)
    assert text.decode(ids) == TEXT and len(ids) < 0.5 * len(TEXT.encode())
    words = text.vocabulary.tokens[4:]
    rank = {token: k for k, token in enumerate(words)}
    for word in ("the", " cat", " sat", " \N{EURO SIGN}", " there"):
        expected = by_hand(word.encode().decode("latin-1"), rank)
        assert text.pieces(text.encode(word)) == expected
    (encoded,) = text.encode_document(Document(tmp_path / "a.txt", 0, len(TEXT.encode())))
    assert encoded.tolist() == ids
    stored = Vocabulary.from_json(text.vocabulary.to_json())
    assert TextCodec("bpe", stored).encode(TEXT) == ids


def test_a_reader_is_shown_the_characters_of_a_token_where_it_has_whole_ones(
    tmp_path: Path,
) -> None:
    text = codec(tmp_path)
    shown = text.shown(text.encode("the \N{EURO SIGN}\u00e9"))
    assert shown == ["the", " \N{EURO SIGN}", "\u00c3", "\u00a9"]  # e with an acute was not learned


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_any_text_comes_back(any_text: str) -> None:
    tokens = learn_pairs(TEXT.splitlines(keepends=True), size=270, min_count=2)
    text = TextCodec("bpe", Vocabulary(tokens, counts=[0] * (4 + len(tokens))))
    try:
        any_text.encode()
    except UnicodeEncodeError:
        with pytest.raises(DataError, match=r"the prompt cannot be encoded: .* is no character"):
            text.encode(any_text)
    else:
        assert text.decode(text.encode(any_text)) == any_text


def test_tokens_that_no_pair_gives_are_refused() -> None:
    for wrong in ("abc", "a\N{EURO SIGN}", "a"):
        with pytest.raises(DataError, match=f"token '{wrong}' is no pair of tokens before it"):
            BytePairs([*BYTES, wrong])
    with pytest.raises(
        DataError, match=r"of byte pairs has all 256 bytes first, .* found 6 tokens"
    ):
        TextCodec("bpe", Vocabulary(["a", "b"], counts=[0] * 6))


def test_without_the_library_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"needs the package tokenizers: pip install .*\[bpe\]"):
        learn_pairs(["a"], size=300, min_count=1)
    writer = TextCodec("bpe", Vocabulary(BYTES, counts=[0] * 260))
    assert writer.encode("") == [] and writer.decode([4 + 97]) == "a"
