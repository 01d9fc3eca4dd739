"""Greedy search against the argmax taken by hand."""

from __future__ import annotations

import math

import pytest
from flat_generation import greedy

from captioner.errors import ConfigError, NumericsError


def argmax_by_hand(model, image, rule):
    words, log_probs = (), ()
    while len(words) < rule.max_length:
        after = model.after(image, words)
        allowed = [token for token in range(len(after)) if rule.allow(words, token)]
        token = max(allowed, key=lambda one: after[one])
        log_probs = (*log_probs, after[token])
        if token == 2:
            return words, log_probs, True
        words = (*words, token)
    return words, log_probs, False


@pytest.mark.parametrize("given", [{}, {"min_length": 3, "banned": (0,)}, {"no_repeat_ngram": 2}])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_takes_the_likeliest_token(tiny, rules, seed, given):
    model, rule = tiny(vocab_size=6, seed=seed), rules(max_length=6, **given)
    found = greedy(model.step, model.state(0, 1, 2), batch_size=3, **rule.as_arguments())
    for image in range(3):
        [one] = found[image]
        words, log_probs, finished = argmax_by_hand(model, image, rule)
        assert (one.token_ids, one.finished) == (words, finished)
        assert one.log_probs == pytest.approx(log_probs)
        assert one.score == pytest.approx(sum(log_probs) / len(log_probs))


def test_the_lower_id_of_equals(constant):
    found = greedy(constant([-1.1, -1.1, -1.1]), None, batch_size=1, bos=0, eos=2, max_length=3)
    assert found[0][0].token_ids == (0, 0, 0)


def test_greedy_ends_whatever_the_model_says(constant):
    arguments = {"batch_size": 1, "bos": 0, "eos": 1, "max_length": 3}
    never = greedy(constant([0.0, -math.inf]), None, **arguments)
    assert (never[0][0].token_ids, never[0][0].finished) == ((0, 0, 0), False)
    nothing = greedy(constant([0.0, -math.inf]), None, banned=(0,), **arguments)
    assert (nothing[0][0].token_ids, nothing[0][0].finished) == ((), False)
    with pytest.raises(NumericsError, match="nan"):
        greedy(constant([math.nan, math.nan]), None, **arguments)


def test_a_wrong_value_is_named(constant):
    with pytest.raises(ConfigError, match="max_length"):
        greedy(constant([0.0]), None, batch_size=1, bos=0, eos=0, max_length=0)
