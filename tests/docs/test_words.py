"""The words that the project no longer uses (the glossary has those it does) are found nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documentation import REPOSITORY

ALL = ("src", "csrc", "configs", "docs", "benchmarks", "scripts", "README.md", "CONTRIBUTING.md")
CODE = ("src", "csrc", "benchmarks")
DEVICE = ("csrc", "src/captioner/ops")
# A whole word or phrase as a regular expression, where it may not stand, and what says it instead.
WORDS: list[tuple[str, tuple[str, ...], str]] = [
    (r"decoders?", ALL, "model, generation method"),
    (r"decode=\w+|decode\.\w+=", ALL, "generation"),
    (r"rooms?|\w+_rooms?|room_\w+|Roomy\w*", ALL, "token capacity, capacity bucket"),
    (r"batch(es)? of nobody|nobody", ALL, "dummy batch, padding rows"),
    (r"ways?|Ways?", CODE, "algorithm"),
    (r"there and back|way back|way there", ALL, "forward and backward"),
    (r"deals?|dealt|dealing|dealt out|Deal\w*|deal_\w+", ALL, "work partition"),
    (r"hands|hand(ed|ing)?[ _]on|hand[ _]on|handed_on", ALL, "publish, pass on"),
    (r"await\w*|inbox\w*", CODE, "wait, double buffer"),
    (r"keep|kept", ("csrc/cuda",), "stage"),
    (r"teams?|members?", ("csrc",), "warp group, rank in group"),
    (r"splits?", ("csrc",), "split-K slices"),
    (r"pass(es)?|\w+_pass|Pass", ("csrc",), "params; forward, backward"),
    (r"sums|input_sums|InputSums|word_sums", DEVICE, "pre-activations, input projection"),
    (r"State<Scalar>", ("csrc",), "acc_t"),
    (r"floors?|\w+_floor|Floor\w*", ALL, "roofline"),
    (r"products?", ("benchmarks", "csrc/cuda"), "GEMM"),
    (r"sides?|Side\w*|\w+_sides?", ("benchmarks",), "implementation, baseline"),
    (r"peers?", CODE, "rank, baseline"),
    (r"pictures?|Pictures?|\w+_pictures?|picture_\w+", ALL, "image"),
    (r"Parts|Surroundings|_?Found|_Ear", ALL, "what the thing is"),
]
# What may stand all the same: a pattern of the line, or of the file's path, and why.
EXCEPTIONS: list[tuple[str, str]] = [
    (r"math\.floor|floor_divide|\.floor\(|floordiv|std::floor", "the function"),
    (r"batch_by|by_picture|picture\b.*batch_by", "trainer.batch_by=picture is a user's key"),
    (r"shown_pictures|pictures=20|\bpictures: int|\.pictures\b", "keys of users' commands"),
    (r"01_the_way_the_data_takes", "the file of a lesson"),
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
