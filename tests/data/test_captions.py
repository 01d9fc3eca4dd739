from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.captions import _TWO_WORDS, CaptionedImage, assemble, count_words
from captioner.data.formats.splits import draw_splits
from captioner.errors import ConfigError, DataError


def image(name: str, *captions: str, folder: Path = Path("images")) -> CaptionedImage:
    return CaptionedImage(name, folder / name, captions or ("a dog runs",), name)


def test_split_checks_the_name_the_content_and_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    data = assemble(
        name="toy",
        source="toy.csv",
        splits={
            "train": [image("a.jpg", folder=tmp_path)],
            "dev": [],
            "test": [image(f"{key}.jpg", folder=tmp_path) for key in "xyz"],
        },
    )
    assert [image.name for image in data.split("train")] == ["a.jpg"]
    with pytest.raises(DataError, match="no split 'val'; the splits there are: train, dev, test"):
        data.split("val")
    with pytest.raises(DataError, match="'dev' of toy is empty"):
        data.split("dev")
    with pytest.raises(DataError, match=r"3 of 3 images are missing, the first: .*x\.jpg"):
        data.split("test")


def test_short_captions_are_dropped_and_noted() -> None:
    train = [image("a.jpg", "A", "a dog", ""), image("b.jpg", " . ", "Dog .")]
    data = assemble(name="toy", source="toy.csv", splits={"train": [*train, image("c.jpg")]})
    assert [image.captions for image in data.splits["train"]] == [("a dog",), ("a dog runs",)]
    assert data.notes == (
        "dropped 2 empty captions, the first: a.jpg",
        "dropped 2 one-word captions, the first: a.jpg: 'A'",
        "dropped 1 images left without a caption, the first: b.jpg",
    )
    assert data.summary() == "toy: train 2 images, 2 captions"


@given(st.text(st.characters() | st.sampled_from(" \t\n._a1")))
def test_a_caption_of_two_words_is_told_by_their_number(caption: str) -> None:
    assert bool(_TWO_WORDS.search(caption)) == (count_words(caption) > 1)


def test_a_split_that_loses_every_caption_is_an_error() -> None:
    splits = {"train": [image("a.jpg")], "dev": [image("b.jpg", "A", "")]}
    with pytest.raises(DataError, match=r"toy\.csv: split 'dev' keeps no caption"):
        assemble(name="toy", source="toy.csv", splits=splits)


def test_overlap_and_repeats_are_errors() -> None:
    two = [image("a.jpg"), image("b.jpg")]
    with pytest.raises(DataError, match=r"'train' and 'test' share 2 images, the first: a\.jpg"):
        assemble(name="toy", source="s", splits={"train": two, "test": two[::-1]})
    with pytest.raises(DataError, match=r"'train' holds 1 images more than once.*a\.jpg"):
        assemble(name="toy", source="s", splits={"train": [*two, two[0]]})
    same_id = [CaptionedImage(key, Path(key), ("a dog runs",), 7) for key in "ab"]
    with pytest.raises(DataError, match="1 image ids more than once, the first: 7"):
        assemble(name="toy", source="s", splits={"train": same_id})


@pytest.mark.parametrize(
    ("caption", "words"), [("", 0), (" . ", 0), ("A .", 1), ("a-b", 1), ("Zwei Hunde .", 2)]
)
def test_count_words(caption: str, words: int) -> None:
    assert count_words(caption) == words


@given(st.integers(10, 200), st.integers(0, 5), st.randoms(use_true_random=False))
def test_drawn_splits_partition_and_ignore_order(count: int, seed: int, random: Random) -> None:
    names = [f"{number}.jpg" for number in range(count)]
    fractions = {"train": 0.8, "dev": 0.1, "test": 0.1}
    drawn = draw_splits(names, fractions=fractions, seed=seed)
    random.shuffle(names)
    assert draw_splits(names, fractions=fractions, seed=seed) == drawn
    assert sorted(name for split in drawn.values() for name in split) == sorted(names)
    assert all(abs(len(drawn[key]) - count * part) < 1 for key, part in fractions.items())


def test_drawn_splits_stay_as_they_were_published() -> None:
    drawn = draw_splits("abcdefgh", fractions={"train": 0.5, "dev": 0.25, "test": 0.25}, seed=0)
    # Written down once: another order would move images between train and test under people.
    assert drawn == {"train": ["b", "c", "f", "g"], "dev": ["d", "e"], "test": ["a", "h"]}
    other = draw_splits("abcdefgh", fractions={"train": 0.5, "dev": 0.25, "test": 0.25}, seed=1)
    assert other != drawn


def test_drawn_splits_ignore_the_order_of_fractions_and_leave_out_zeros() -> None:
    drawn = draw_splits("abcd", fractions={"train": 0.5, "dev": 0.5}, seed=0)
    assert draw_splits("abcd", fractions={"test": 0, "dev": 0.5, "train": 0.5}, seed=0) == drawn
    assert list(drawn) == ["train", "dev"]


def test_drawn_splits_refuse_bad_fractions_and_too_few_names() -> None:
    with pytest.raises(ConfigError, match=r"add up to 1.*sum 0\.9"):
        draw_splits("abc", fractions={"train": 0.8, "dev": 0.1}, seed=0)
    with pytest.raises(ConfigError, match="negative"):
        draw_splits("abc", fractions={"train": 1.5, "dev": -0.5}, seed=0)
    with pytest.raises(ConfigError, match="'val'"):
        draw_splits("abc", fractions={"train": 0.8, "val": 0.2}, seed=0)
    with pytest.raises(DataError, match=r"3 images are too few.*'test' would be empty"):
        draw_splits("abc", fractions={"train": 0.5, "dev": 0.4, "test": 0.1}, seed=0)
