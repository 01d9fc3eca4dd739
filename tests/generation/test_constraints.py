"""The constraints against their plain Python twin, and the values they refuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from captioner.errors import ConfigError
from captioner.generation import Constraints

ARGUMENTS = {
    "bos": 1,
    "eos": 2,
    "max_length": 6,
    "min_length": 0,
    "banned": (),
    "no_repeat_ngram": 0,
}


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 5])
def test_what_is_forbidden_is_what_the_rules_forbid(rules, n, length):
    given = {"max_length": 6, "min_length": 3, "banned": (1,), "no_repeat_ngram": n}
    rule = rules(**given)
    every = itertools.product([0, 3, 4, 5, 6], repeat=length)
    # only what the rules let come about: no repeat is there yet
    prefixes = [one for one in every if not one or rule.allow(one[:-1], one[-1])]
    words = torch.tensor(prefixes, dtype=torch.long).view(len(prefixes), length)
    log_probs = torch.zeros(len(prefixes), 7)
    left = Constraints(bos=1, eos=2, **given).apply(log_probs, words)
    expected = [[rule.allow(prefix, token) for token in range(7)] for prefix in prefixes]
    assert prefixes
    assert (left == 0).tolist() == expected
    assert (left == -math.inf).logical_not().tolist() == expected
    assert torch.equal(log_probs, torch.zeros_like(log_probs))


def test_without_rules_nothing_is_touched():
    log_probs = torch.randn(2, 5)
    assert Constraints(**ARGUMENTS).apply(log_probs, torch.zeros(2, 3).long()) is log_probs


def test_a_model_without_eos_may_use_every_id():
    rule = Constraints(**{**ARGUMENTS, "eos": None, "min_length": 4})
    left = rule.apply(torch.zeros(1, 5), torch.zeros(1, 2).long())
    assert torch.equal(left, torch.zeros(1, 5))


@pytest.mark.parametrize(
    "name, given",
    [
        ("max_length", {"max_length": 0}),
        ("min_length", {"min_length": -1}),
        ("min_length", {"min_length": 7}),
        ("no_repeat_ngram", {"no_repeat_ngram": -1}),
        ("banned", {"banned": (0, -3)}),
        ("banned", {"banned": (0, 2)}),
        ("eos", {"eos": -2}),
        ("bos", {"bos": -1}),
    ],
)
def test_a_wrong_value_is_named(name, given):
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        Constraints(**{**ARGUMENTS, **given})


@pytest.mark.parametrize("name, given", [("eos", {"eos": 5}), ("banned", {"banned": (0, 9)})])
def test_an_id_outside_the_vocabulary_is_named(name, given):
    with pytest.raises(ConfigError, match=f"^{name} must be below the vocabulary's size, 5"):
        Constraints(**{**ARGUMENTS, **given}).apply(torch.zeros(1, 5), torch.zeros(1, 0).long())


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 5), (5,)])
def test_log_probs_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"log_probs \[N, V\] with N = 2"):
        Constraints(**ARGUMENTS).apply(torch.zeros(shape), torch.zeros(2, 0).long())
