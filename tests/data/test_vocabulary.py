"""Words and their numbers: what is kept, in which order, and what becomes of the rest."""

from __future__ import annotations

import json

import pytest

from captioner.data.vocabulary import SPECIAL, Vocabulary
from captioner.errors import DataError

CAPTIONS = [
    ["a", "dog", "runs"],
    ["a", "cat", "sits"],
    ["a", "dog", "sits", "down"],
    ["zebra"],
]


def test_words_are_kept_by_count_then_alphabet() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    assert vocabulary.tokens == [
        "<pad>", "<bos>", "<eos>", "<unk>", "a", "dog", "sits", "cat", "down", "runs", "zebra",
    ]  # fmt: skip
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eos, vocabulary.unk) == (0, 1, 2, 3)
    assert len(vocabulary) == 11
    assert "dog" in vocabulary and "horse" not in vocabulary


def test_the_order_of_the_captions_does_not_matter() -> None:
    forth, back = (Vocabulary.build(c, min_count=1) for c in (CAPTIONS, CAPTIONS[::-1]))
    assert forth == back


def test_a_word_is_kept_from_min_count_on() -> None:
    assert Vocabulary.build(CAPTIONS, min_count=2).tokens[4:] == ["a", "dog", "sits"]
    assert Vocabulary.build(CAPTIONS, min_count=3).tokens[4:] == ["a"]


def test_a_rare_word_becomes_unknown_or_is_dropped() -> None:
    words = ["a", "zebra", "sits", "horse"]
    unk = Vocabulary.build(CAPTIONS, min_count=2)
    assert unk.encode(words) == [4, 3, 6, 3]
    assert unk.decode(unk.encode(words)) == ["a", "<unk>", "sits", "<unk>"]
    drop = Vocabulary.build(CAPTIONS, min_count=2, rare="drop")
    assert drop.encode(words) == [4, 6]
    assert drop.encode(["zebra"]) == []


def test_counts_are_of_the_tokens_as_encoded() -> None:
    unk = Vocabulary.build(CAPTIONS, min_count=2)
    assert dict(zip(unk.tokens, unk.counts, strict=True)) == {
        "<pad>": 0, "<bos>": 0, "<eos>": 4, "<unk>": 4, "a": 3, "dog": 2, "sits": 2,
    }  # fmt: skip
    drop = Vocabulary.build(CAPTIONS, min_count=2, rare="drop")
    assert drop.counts == [0, 0, 4, 0, 3, 2, 2]
    for vocabulary in (unk, drop):
        encoded = [vocabulary.encode(caption) for caption in CAPTIONS]
        assert sum(vocabulary.counts) == sum(map(len, encoded)) + len(CAPTIONS)


def test_decoding_leaves_out_padding_and_frames() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    assert vocabulary.decode([1, 4, 3, 5, 2, 0, 0]) == ["a", "<unk>", "dog"]
    assert vocabulary.decode([]) == []


def test_a_corpus_that_writes_unk_itself_has_it_once() -> None:
    captions = [["the", "<unk>", "the", "once"], ["<unk>", "the"]]
    vocabulary = Vocabulary.build(captions, min_count=2)
    assert vocabulary.tokens == [*SPECIAL, "the"]
    assert vocabulary.counts == [0, 0, 2, 3, 3]
    assert vocabulary.encode(captions[0]) == [4, 3, 4, 3]


@pytest.mark.parametrize("rare", ["unk", "drop"])
def test_json_brings_it_back_whole(rare: str) -> None:
    vocabulary = Vocabulary.build([*CAPTIONS, ["café", '"', "\u2028"]], min_count=1, rare=rare)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again == vocabulary
    assert again.encode(["café", "horse"]) == vocabulary.encode(["café", "horse"])
    assert again != Vocabulary.build(CAPTIONS, min_count=1, rare=rare)
    assert again != "a vocabulary"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"words": ["a"], "counts": [1, 1, 1, 1, 1]}',
        '{"words": null, "counts": [], "rare": "unk"}',
        '{"words": ["a"], "counts": null, "rare": "unk"}',
        '{"words": [["a"]], "counts": [0, 0, 0, 0, 0], "rare": "unk"}',
        '{"words": [7], "counts": [0, 0, 0, 0, 0], "rare": "unk"}',
        '{"words": ["\\ud800"], "counts": [0, 0, 0, 0, 0], "rare": "unk"}',
        '{"words": ["a"], "counts": [0, 0, 0, 0, -1], "rare": "unk"}',
    ],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"best\.pt: vocabulary"):
        Vocabulary.from_json(text, "best.pt: vocabulary")


def test_contradictory_content_is_refused_naming_it() -> None:
    state = json.loads(Vocabulary.build(CAPTIONS, min_count=3).to_json())
    for change, message in (
        ({"words": ["a", "a"], "counts": [0] * 6}, "lists 'a' more than once"),
        ({"words": ["<eos>"]}, "lists '<eos>' more than once"),
        ({"counts": [1]}, "has 5 tokens but 1 counts"),
        ({"rare": "keep"}, "one of unk, drop, got 'keep'"),
    ):
        with pytest.raises(DataError, match=message):
            Vocabulary.from_json(json.dumps({**state, **change}))


def test_an_empty_vocabulary_is_refused_telling_the_commonest_word() -> None:
    with pytest.raises(DataError, match=r"min_count=4 times in 4 .*commonest, 'a', 3 times"):
        Vocabulary.build(CAPTIONS, min_count=4)
    with pytest.raises(DataError, match=r"in 0 training captions \(no word\)"):
        Vocabulary.build([])
