"""The words that the project no longer uses (the glossary has those it does) are found nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documentation import REPOSITORY

ALL = ("src", "csrc", "configs", "docs", "scripts", "README.md", "CONTRIBUTING.md")
MEASURED = (*ALL, "benchmarks")
CODE = ("src", "csrc")
DEVICE = ("csrc", "src/captioner/ops")
# A whole word or phrase as a regular expression, where it may not stand, and what says it instead.
WORDS: list[tuple[str, tuple[str, ...], str]] = [
    (r"decoders?|Decoders?", ALL, "model, generation method"),
    (r"decode=\w+|decode\.\w+=|decoder\.\w+=", ALL, "generation, model"),
    (r"rooms?|\w+_rooms?|room_\w+|Roomy\w*", MEASURED, "token capacity, capacity bucket"),
    (r"batch(es)? of nobody|nobody", ALL, "dummy batch, padding rows"),
    (r"ways?|Ways?", CODE, "algorithm"),
    (r"there and back|way back|way there", ALL, "forward and backward"),
    (r"deals?|dealt|dealing|Deal\w*|deal_\w+", MEASURED, "work partition"),
    (r"hands|hand(ed|ing)?[ _]on", MEASURED, "publish, pass on"),
    (r"await\w*|inbox\w*", ("csrc",), "wait, double buffer"),
    (r"keep\(|hand_on\w*", ("csrc",), "stage, publish"),
    (r"teams?|members?", ("csrc",), "warp group, rank in group"),
    (r"splits?(?!-K)", ("csrc",), "split-K slices"),
    (r"\w+_pass|Pass\w*|pass\.\w+|[&*] ?pass", ("csrc",), "params"),
    (r"input_sums?|InputSums|word_sums", DEVICE, "pre-activations, input projection"),
    (r"State<Scalar>", ("csrc",), "acc_t"),
    (r"floors?|\w+_floor|Floor\w*", MEASURED, "roofline"),
    (r"(?<!by )sides?(?! by)|Sides?", ("benchmarks",), "implementation"),
    (r"peers?", (*CODE, "benchmarks"), "rank, baseline"),
    (r"pictures?|Pictures?|\w+_pictures?|picture_\w+", ALL, "image"),
    (r"Parts|Surroundings|_?Found|_Ear", ALL, "what the thing is"),
]
# What may stand all the same: a pattern of the line, or of the file's path, and why.
EXCEPTIONS: list[tuple[str, str]] = [
    (r"math\.floor|floor_divide|\.floor\(|floordiv|std::floor", "the function"),
    (r"batch_by|trainer\.batch_by=picture|== \"picture\"", "batch_by=picture is a user's key"),
    (r"shown_pictures|\bpictures=\d|`pictures`|\bpictures: int|config\.pictures", "users' keys"),
    (r"^src/captioner/runs/upgrade.py|check_overrides|override /decode", "reads the old names"),
    (
        r"(Pillow's|byte order mark the) decoder|A decoder on a GPU|decoder.decode",
        "of JPEGs, of UTF-8",
    ),
    (r"getincrementaldecoder", "of UTF-8"),
    (
        r"entry\[\"picture\"\]|identity\[\"pictures\"\]|\"pictures\", self",
        "keys of files and users",
    ),
    (r"\"peer\" in str", "torch's message"),
    (r"split in two|sequences are split|one of two ways", "plain English in csrc/"),
    (r"Found out once", "a sentence"),
]
SUFFIXES = {".py", ".yaml", ".md", ".h", ".cpp", ".cu", ".cuh", ".inl", ".css", ".js"}


def files(places: tuple[str, ...]) -> list[Path]:
    found = []
    for place in places:
        path = REPOSITORY / place
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        found += [x for x in inside if x.suffix in SUFFIXES and "results" not in x.parts]
    return found


def lines_with(pattern: str, places: tuple[str, ...]) -> list[str]:
    """Lines in which the pattern stands as a whole word, as path:line: text, but the exceptions."""
    whole = re.compile(rf"(?<![\w])(?:{pattern})(?![\w])")
    found = []
    for path in files(places):
        name = path.relative_to(REPOSITORY).as_posix()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if whole.search(line) and not any(
                re.search(x, f"{name}: {line}") for x, _ in EXCEPTIONS
            ):
                found.append(f"{name}:{number}: {line.strip()[:110]}")
    return found


@pytest.mark.parametrize(("pattern", "places", "instead"), WORDS, ids=[x[0] for x in WORDS])
def test_a_word_is_gone(pattern: str, places: tuple[str, ...], instead: str) -> None:
    found = lines_with(pattern, places)
    assert not found, f"{len(found)} lines; say {instead!r}:\n" + "\n".join(found[:20])
