"""Overrides that somebody, or nobody in his senses, might type: taken, or refused in a sentence.

CAPTIONER_FUZZ=25 tries 25 times as many.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import composed
import pytest
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from captioner import config as schema
from captioner.commands.cli import check_overrides, compose_config, quote
from captioner.commands.failures import explain
from captioner.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
CASES = 200 * int(os.environ.get("CAPTIONER_FUZZ", "1"))
SECONDS = 5.0  # of computing, for one case
NEEDED = {
    "average": ["checkpoint=[a.pt,b.pt]", "out=c.pt"],
    "caption": ["checkpoint=a", "images=b"],
    "compare": ["runs=[a,b]"],
    "demo": ["checkpoint=a"],
    "evaluate": ["checkpoint=a"],
    "export": ["checkpoint=a", "out=b"],
    "sample": ["checkpoint=a"],
}
NAMES = sorted(set(schema.COMMANDS) - {"benchmark"})
KEYS = {name: schema.known_keys(schema.COMMANDS[name]) for name in NAMES}
GROUPS = ["", "experiment", "hydra", "hydra/sweeper", "data", "encoder", "trainer", "generation"]

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**30]),
    st.floats(),
    st.sampled_from(["1e19", "-inf", ".inf", "nan", "1e400", "0x10", "1_000", "9" * 5000]),
)
words = st.sampled_from(
    [
        *("null", "true", "[]", "{}", "[null]", "[1,[2]]", "{a: 1}", "''", '"', "'", "a=b", "=="),
        *("${", "${nothing}", "${oc.env:NOTHING}", "${seed}", "???", "1,2", "range(1,3)"),
        *("choice(1,2)",),
        *("interval(0,1)", "tag(a, 1)", "int('x')", "../../x", "/dev/null", "a b", "\\", "~", "@"),
        *("-", "\t", "\u00e4", "\U0001f600", "\udcff", "cuda:99", "cpu:0", "all", "none", "full"),
    ]
)
texts = st.text(st.characters(blacklist_characters="\0"), max_size=12)
values = st.one_of(numbers, words, texts, st.lists(st.one_of(numbers, words), max_size=3))


@st.composite
def overrides(draw: st.DrawFn) -> tuple[str, str]:
    """A command and an override of one of its keys, or nearly one of its keys."""
    name = draw(st.sampled_from(NAMES))
    key = draw(st.sampled_from(KEYS[name]))
    if draw(st.integers(0, 4)) == 0:
        ending = draw(st.sampled_from(["_", ".x", "", "."]))
        key = draw(st.sampled_from([*GROUPS, f"_{key}", key[1:], key.upper(), "a.b.c"])) + ending
    before = draw(st.sampled_from(["", "", "", "", "+", "++", "~"]))
    value = draw(values)
    shown = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return name, f"{before}{key}={shown}"


@pytest.fixture(scope="module")
def counts() -> Iterator[Counter[str]]:
    """How many cases ended how; printed at the end."""
    ended: Counter[str] = Counter()
    yield ended
    print(f"\noverrides: {ended.total()} tried, {dict(ended)}")


def attempt(name: str, override: str, *, anew: bool) -> str:
    """How an override ends: "taken", or "clear" when it is refused in one sentence.

    Hydra changes by it what it has composed, or composes `anew`, which takes twenty times as long.
    """
    begun = time.process_time()
    try:
        if anew:
            given = compose_config(name, [*NEEDED.get(name, []), override], configs=CONFIGS)
        else:
            given = changed(name, override)
        ended = "taken"
        assert isinstance(given, schema.COMMANDS[name])
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        sentence = str(error) if isinstance(error, ConfigError) else explain(error, name)
        ended = "clear"
        assert sentence.strip() and len(sentence) < 2000 and "Traceback" not in sentence
    assert time.process_time() - begun < SECONDS, f"{name} {override} took too long"
    return ended


def changed(name: str, override: str) -> Any:
    check_overrides([override])
    needed = tuple(NEEDED.get(name, []))
    return composed.changed(composed.chosen(name, needed, CONFIGS), [override])


fuzzed = settings(
    deadline=None,
    derandomize="CAPTIONER_FUZZ" not in os.environ,  # the gate's cases are always the same
    database=None,
    suppress_health_check=list(HealthCheck),
)


@settings(fuzzed, max_examples=CASES)
@given(case=overrides())
def test_an_override_is_taken_or_refused_in_one_sentence(
    case: tuple[str, str], counts: Counter[str]
) -> None:
    name, override = case
    counts[attempt(name, quote(override), anew=False)] += 1


@settings(fuzzed, max_examples=CASES // 50)
@given(case=overrides())
def test_the_same_while_hydra_composes(case: tuple[str, str], counts: Counter[str]) -> None:
    name, override = case
    counts[attempt(name, quote(override), anew=True)] += 1


@pytest.mark.parametrize(
    ("name", "override", "sentence"),
    [
        ("train", "+_unknown=1", "there is no key _unknown"),
        ("train", "++trainer.unknown=1", "there is no key trainer.unknown"),
        ("train", "=5", "a key stands before ="),
        ("train", "trainer=null", "trainer= names one of its choices, got None"),
        ("train", "experiment=5", "experiment= names one of its choices, got 5"),
        ("train", "trainer.epochs=" + "9" * 5000, "trainer.epochs=9999"),
        ("train", "seed=18446744073709551616", "seed must be from 0 to 9223372036854775807"),
        ("train", "run_dir=''", "run_dir must be the name of a file or folder"),
        ("train", "optimizer.weight_decay=inf", "at least 0 and finite, got inf"),
        ("evaluate", "metrics=[]", "metrics must name one or more"),
        ("caption", "images=[]", "images must be a file or a list of files"),
        ("caption", "images=null", "images must be a file or a list of files"),
        ("caption", "images=[5]", "images must be a file or a list of files"),
        ("demo", "max_mb=inf", "max_mb must be greater than 0 and finite"),
        ("demo", "host=''", "host must be an address or a name"),
        ("compare", "seed=-1", "seed must be at least 0, got -1"),
        ("export", "scores=5", "scores must be a file or a list"),
        ("train", "device=cpu:0", "device must be auto, cpu, cuda or cuda:N"),
        ("prepare_flickr8k", "images_sha256=abc", "images_sha256 must be 64 hex digits"),
    ],
)
def test_what_was_taken_in_silence_or_showed_a_traceback(
    name: str, override: str, sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        changed(name, override)
    assert sentence in str(error.value)
