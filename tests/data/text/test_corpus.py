"""Encoding and decoding by characters, bytes and words, and the cached files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from captioner.data.text.codec import TextCodec, build_vocabulary
from captioner.data.text.corpus import TextCorpus, encode_corpus
from captioner.data.text.files import Document
from captioner.errors import DataError

TEXT = "the cat\n\nthe \N{EURO SIGN} hat\na cat"


def document(folder: Path, name: str, text: str) -> Document:
    (folder / name).write_text(text, encoding="utf-8")
    return Document(folder / name, 0, len(text.encode()))


def encode(
    folder: Path, unit: str, *texts: str, dev: str = "the cow", **settings: int
) -> TextCorpus:
    documents = [document(folder, f"{k}.txt", text) for k, text in enumerate(texts)]
    splits = {"train": documents, "dev": [document(folder, "dev.txt", dev)]}
    return encode_corpus(
        splits, name="x", unit=unit, min_count=settings.get("min_count", 1), cache_dir=folder / "c"
    )


@pytest.mark.parametrize("unit", ["character", "byte"])
def test_text_comes_back_from_its_numbers(tmp_path: Path, unit: str) -> None:
    corpus = encode(tmp_path, unit, TEXT, "more\n")
    stream, vocabulary = corpus.split("train"), corpus.codec.vocabulary
    size = len(TEXT) if unit == "character" else len(TEXT.encode())
    assert len(stream.tokens) == 2 + size + 5 and stream.documents == 2
    assert np.flatnonzero(stream.tokens == vocabulary.bos).tolist() == [0, size + 1]
    assert stream.characters == len(TEXT) + 5 and stream.unknown == 0
    assert corpus.codec.decode(stream.tokens.tolist()) == TEXT + "more\n"
    assert corpus.codec.encode(TEXT) == stream.tokens[1 : size + 1].tolist()
    # o and w of "cow" are in the training text, by characters of "more" only for the o
    assert corpus.split("dev").unknown == (1 if unit == "character" else 0)


def test_what_was_encoded_before_vocabularies_had_a_size_is_found_again(tmp_path: Path) -> None:
    encode(tmp_path, "character", TEXT)

    def identity(path: Path) -> tuple[str, int, int, int]:
        return str(path.resolve()), 0, path.stat().st_size, path.stat().st_mtime_ns

    files = {"train": [identity(tmp_path / "0.txt")], "dev": [identity(tmp_path / "dev.txt")]}
    before = hashlib.sha256(json.dumps([2, "character", 1, None, files]).encode())
    assert (tmp_path / "c" / before.hexdigest()[:20] / "text.json").exists()


def test_words_end_their_lines_and_rare_ones_are_unknown(tmp_path: Path) -> None:
    corpus = encode(tmp_path, "word", TEXT, min_count=2)
    vocabulary = corpus.codec.vocabulary
    tokens = [vocabulary.tokens[k] for k in corpus.split("train").tokens]
    text = "<bos> the cat <eos> <eos> the <unk> <unk> <eos> <unk> cat <eos>"
    assert tokens == text.split()
    assert corpus.codec.decode(corpus.codec.encode("the cat\nthe")) == "the cat \nthe "
    counts = dict(zip(vocabulary.tokens, vocabulary.counts, strict=True))
    assert counts == {"<pad>": 0, "<bos>": 0, "<eos>": 4, "<unk>": 3, "cat": 2, "the": 2}
    # counts are what is predicted: every token but the first
    assert sum(counts.values()) == len(tokens) - 1


@pytest.mark.parametrize("unit", ["character", "byte", "word", "bpe"])
def test_counts_are_those_of_the_predicted_tokens(tmp_path: Path, unit: str) -> None:
    corpus = encode(tmp_path, unit, TEXT, "the\nend", "of\n")
    tokens = corpus.split("train").tokens[1:]
    found = np.bincount(tokens, minlength=len(corpus.codec.vocabulary)).tolist()
    assert found == corpus.codec.vocabulary.counts


def test_the_vocabulary_is_that_of_the_training_text(tmp_path: Path) -> None:
    corpus = encode(tmp_path, "character", "aab", dev="abc")
    assert corpus.codec.vocabulary.tokens[4:] == ["a", "b"]
    given = encode_corpus(
        {"all": [document(tmp_path, "z.txt", "cab")]}, name="z", unit="character", min_count=1,
        cache_dir=tmp_path, vocabulary=corpus.codec.vocabulary,
    )  # fmt: skip
    assert given.split("all").tokens.tolist() == [1, 3, 4, 5]
    with pytest.raises(DataError, match=r"no split 'dev'; the splits there are: all"):
        given.split("dev")


def test_the_files_are_used_again_until_text_or_settings_change(tmp_path: Path) -> None:
    first = encode(tmp_path, "character", TEXT)
    assert isinstance(first.split("train").tokens, np.memmap)
    kept = sorted((tmp_path / "c").rglob("*.bin"))
    dates = [path.stat().st_mtime_ns for path in kept]
    again = encode(tmp_path, "character", TEXT)  # written anew: another date, another fingerprint
    assert len(list((tmp_path / "c").iterdir())) == 2
    splits = {"train": [Document(tmp_path / "0.txt", 0, len(TEXT.encode()))]}
    same = [
        encode_corpus(splits, name="x", unit="character", min_count=n, cache_dir=tmp_path / "d")
        for n in (1, 1, 2)
    ]
    assert len(list((tmp_path / "d").iterdir())) == 2
    assert same[0].split("train").tokens.tolist() == again.split("train").tokens.tolist()
    assert [path.stat().st_mtime_ns for path in kept] == dates
    path = next((tmp_path / "d").rglob("train.bin"))
    for one in (tmp_path / "d").rglob("train.bin"):
        one.write_bytes(one.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name} has \d+ bytes, expected \d+"):
        encode_corpus(splits, name="x", unit="character", min_count=1, cache_dir=tmp_path / "d")


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("word", r"no word occurs min_count=9 times in 4 training lines \(.*'cat', 2 times\)"),
        ("character", r"no character occurs min_count=9 times in 1 training documents"),
    ],
)
def test_a_vocabulary_that_leaves_nothing_is_refused(
    tmp_path: Path, unit: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_vocabulary([document(tmp_path, "a.txt", TEXT)], unit=unit, min_count=9)


@pytest.mark.parametrize(
    ("unit", "prompt", "message"),
    [
        ("character", "the z\N{EURO SIGN}q", r"no character 'z', 'q'; the first at 4"),
        ("word", "the dog\nthe pig", r"no word 'dog', 'pig'$"),
        ("character", "0123456789", r"'0', '1', '2', '3', '4' and 5 more"),
    ],
)
def test_a_prompt_that_cannot_be_encoded_says_what_is_unknown(
    tmp_path: Path, unit: str, prompt: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        encode(tmp_path, unit, TEXT).codec.encode(prompt)


def test_bytes_that_are_no_text_still_decode(tmp_path: Path) -> None:
    codec: TextCodec = encode(tmp_path, "byte", TEXT).codec
    assert codec.decode([4 + 0xE2, 4 + 65]) == "\N{REPLACEMENT CHARACTER}A"


def cached(folder: Path) -> Callable[[], TextCorpus]:
    """Encodes a text, which is then in the cache, and again whenever it is called."""
    splits = {"train": [document(folder, "x.txt", TEXT)]}
    again = partial(
        encode_corpus, splits, name="x", unit="character", min_count=1, cache_dir=folder / "c"
    )
    again()
    return again


def test_cached_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    again = cached(tmp_path)
    (file,) = (tmp_path / "c").glob("*/train.bin")
    tokens = np.fromfile(file, np.uint8)
    tokens[5] = 200
    tokens.tofile(file)
    with pytest.raises(DataError, match=r"train\.bin holds the token 200, expected less than 1\d;"):
        again()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocabulary", "{}", "vocabulary lacks 'counts'"),
        ("dtype", "object", "dtype must be one of uint8"),
        ("splits", {"train": {"tokens": "9"}}, r"splits\.train lacks 'bytes'"),
        ("splits", [], "splits must be an object"),
    ],
)
def test_a_cache_of_another_shape_is_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    again = cached(tmp_path)
    (file,) = (tmp_path / "c").glob("*/text.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(DataError, match=rf"text\.json: .*{message}.*delete "):
        again()
