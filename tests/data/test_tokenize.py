"""The expected tokens are Stanford's (PTBTokenizer 3.4.1), less coco-caption's punctuation."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.tokenize import PUNCTUATION, _tokens, coco_tokens, tokenize

FLICKR8K = Path(
    os.environ.get("CAPTIONER_FLICKR8K", Path(__file__).parents[2].parent / "shared" / "flickr8k")
)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's hat .", "a man 's hat"),
        ("A dog, black and white; runs!", "a dog black and white runs"),
        ("the boys' dogs ' balls", "the boys dogs balls"),
        (
            "They don't , can't and won't ; I'm sure they're",
            "they do n't ca n't and wo n't i 'm sure they 're",
        ),
        ("I ca n't , a dog 's ball", "i ca n't a dog 's ball"),
        ("He cannot swim , gonna wanna gotta lemme", "he can not swim gon na wan na got ta lem me"),
        ("'tis o'clock , ma'am O'Brien", "'t is o'clock ma'am o'brien"),
        ("a black-and-white t-shirt", "a black-and-white t-shirt"),
        ("mid-air- jump -- a dog -cat", "mid-air jump a dog cat"),
        ('a shirt saying " -ependent " faces', "a shirt saying ependent faces"),
        ("An ant 's-eye-view , a dog's-eye view", "an ant 's eye-view a dog 's eye view"),
        ("a yellow slip n 'slide .", "a yellow slip n slide"),
        ("slip 'n' slide", "slip 'n' slide"),
        ("a 'quoted' word and \"another\"", "a quoted word and another"),
        ("two children RIF=ding sleds", "two children rif = ding sleds"),
        ("an at&t headphone", "an at & t headphone"),
        ("#7 costs $5.00 or 3,000 at 10:30, 50%", "# 7 costs $ 5.00 or 3,000 at 10:30 50 %"),
        ("the 1980's , 1/2 and/or", "the 1980 's 1/2 and/or"),
        (
            "see www.example.com or http://example.com/a .",
            "see www.example.com or http://example.com/a",
        ),
    ],
)
def test_words_contractions_and_punctuation(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens.split()


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog runs. A cat sits.", "a dog runs a cat sits"),
        ("A boy wears Mr. Potato head", "a boy wears mr. potato head"),
        ("Dale Earnhardt , Jr. , display", "dale earnhardt jr. display"),
        ("newspapers in Washington D.C.", "newspapers in washington d.c."),
        ("a boy in an R.V.", "a boy in an r.v."),
        ("for Miami U. pushes forward", "for miami u. pushes forward"),
        ('the letter " P. "', "the letter p."),
        ("a U.S.-made car at 5 p.m.", "a u.s.-made car at 5 p.m."),
        ("No. 5 says no.", "no. 5 says no"),
        ("a dog...running .. away ....", "a dog running away"),
    ],
)
def test_full_stops_of_abbreviations_stay_and_of_sentences_go(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens.split()


def test_brackets_go_though_coco_caption_lets_them_through() -> None:
    assert " ".join(tokenize("a lens ( fish eye ) [of] {a} boy)")) == "a lens fish eye of a boy"
    assert tokenize("really?! wow!!!") == ["really", "wow"]


def test_typographic_characters_count_as_the_plain_ones() -> None:
    quoted = (
        "a \N{LEFT DOUBLE QUOTATION MARK}sign\N{RIGHT DOUBLE QUOTATION MARK} "
        "that\N{RIGHT SINGLE QUOTATION MARK}s"
    )
    assert tokenize(
        quoted + " here\N{HORIZONTAL ELLIPSIS}now \N{EM DASH} cafe\N{COMBINING ACUTE ACCENT}"
    ) == [
        *("a", "sign", "that", "'s", "here", "now"),
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    ]
    assert tokenize("a dog &amp; a cat, &quot;hi&quot;") == ["a", "dog", "&", "a", "cat", "hi"]


def test_special_tokens_stay_whole() -> None:
    assert tokenize("a <unk> dog") == ["a", "<unk>", "dog"]


@pytest.mark.parametrize("caption", ["", " ", ".", "...", "\n\t", "'", '"', "( )"])
def test_nothing_but_punctuation_gives_no_tokens(caption: str) -> None:
    assert tokenize(caption) == []


def test_the_list_returned_is_the_callers_own() -> None:
    tokenize("a dog").append("x")
    assert tokenize("a dog") == ["a", "dog"]


@given(st.text(max_size=60))
def test_any_text_gives_lower_case_words_without_spaces(text: str) -> None:
    for token in tokenize(text):
        assert token and token not in PUNCTUATION and token == token.lower()


@given(
    st.lists(
        st.sampled_from(
            ["a", "man", "'s", "n't", "do", "dog", "t-shirt", "u.s.", "can", "not", "5"]
        )
    )
)
def test_tokens_joined_by_spaces_are_the_same_tokens(words: list[str]) -> None:
    assert tokenize(" ".join(words)) == words


PIECES = (
    "a man dog. a. (b. fig. smart. 5a. st. no. 7 .5 5 u.s. p.m. it's dog's. 't 't. 'tis at't is "
    "don't n't o'n't cannot gonna. <a b> </i &amp; &amp;lt; r&b t-shirt, wow!! ?! '' ``x'' \t\n é"
)
piece = st.one_of(st.sampled_from(PIECES.split(" ")), st.text("a.'tN&<> \x1c5-", max_size=6))


@given(st.lists(piece))
def test_pieces_between_spaces_give_the_tokens_of_the_whole_caption(pieces: list[str]) -> None:
    caption = " ".join(pieces)
    assert coco_tokens(caption) == _tokens(caption)


def test_long_runs_of_one_character_take_no_quadratic_time() -> None:
    for character in ("a", "-", ".", "'", "<", "a.", "a-", "(", "&", "1,"):
        begun = time.process_time()
        tokenize(character * 20_000)
        assert time.process_time() - begun < 2, character


ODD = """
a (b) [c] {d}|wow!! really?! what??? ...|AT&T r&b|c++ c#|$5 £3 50% #7 @home
y'all rock'n'roll|½ cup
«a» 日本語 の 犬
don't 'tis|it's 5:30 p.m. in the U.S.|   |a dog . .|(((|über Straße|cannot gimme GONNA
"""


def test_scores_keep_what_coco_caption_fails_to_drop() -> None:
    assert coco_tokens("A (wet) dog!!") == ("a", "-lrb-", "wet", "-rrb-", "dog", "!!")
    assert tokenize("A (wet) dog!!") == ["a", "wet", "dog"]


def test_stanfords_tokenizer_gives_the_same_on_odd_captions_and_on_all_of_flickr8k() -> None:
    stanford = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    lines = FLICKR8K / "Flickr8k.token.txt"
    folder = Path(stanford.__file__).parent  # where its Java is given the captions
    if not (shutil.which("java") and lines.exists() and os.access(folder, os.W_OK)):
        pytest.skip(f"needs java, a writable {folder} and Flickr8k's captions at {FLICKR8K}")
    captions = [line.split("\t", 1)[1] for line in lines.read_text("utf-8").splitlines()]
    assert len(captions) == 40_460
    captions += ODD.replace("\n", "|").split("|")
    captions.append("a\u00a0b\u200bc \U0001f600")
    theirs = stanford.PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    different = [
        (c, theirs[i], coco_tokens(c))
        for i, c in enumerate(captions)
        if theirs[i] != [" ".join(coco_tokens(c))]
    ]
    assert not different
