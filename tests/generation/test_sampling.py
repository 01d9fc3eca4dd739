"""Sampling: frequencies, filters, reproducibility, and that it ends."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from flat_generation import sample

from captioner.errors import ConfigError, NumericsError
from captioner.generation.sampling import draw, filtered

ARGUMENTS = {"batch_size": 1, "bos": 1, "eos": 2, "max_length": 3}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(found, probabilities):
    """Pearson's statistic of the sentences found against their probabilities, keyed alike."""
    counts, total = Counter(found), len(found)
    assert set(counts) <= set(probabilities)
    return sum((counts[key] - total * p) ** 2 / (total * p) for key, p in probabilities.items())


def keys(hypotheses):
    return [(one.token_ids, one.finished) for one in hypotheses]


def test_sentences_come_with_their_probability(tiny, rules, enumerate_all):
    model, rule = tiny(vocab_size=4, sharpness=1.0), rules(max_length=2)
    arguments = {**rule.as_arguments(), "batch_size": 2, "samples": 20_000}
    found = sample(model.step, model.state(0, 1), generator=seeded(), **arguments)
    for image in (0, 1):
        every = enumerate_all(model, image, rule, 0.0)
        expected = {key: math.exp(one.score) for key, one in zip(keys(every), every, strict=True)}
        assert sum(expected.values()) == pytest.approx(1.0)
        # 13 sentences, 12 degrees of freedom: 32.9 is passed once in a thousand seeds
        assert len(expected) == 13
        assert chi_square(keys(found[image]), expected) < 32.9


def weights(**settings):
    """The frequencies of single words drawn from 0.4, 0.3, 0.2, 0.1."""
    log_probs = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()

    def step(token_ids, state):
        return log_probs.expand(len(token_ids), -1), state

    found = sample(
        step,
        None,
        batch_size=1,
        bos=0,
        eos=None,
        max_length=1,
        samples=20_000,
        generator=seeded(),
        **settings,
    )
    return [one.token_ids[0] for one in found[0]]


@pytest.mark.parametrize(
    "settings, weight",
    [
        ({}, [4, 3, 2, 1]),
        ({"temperature": 0.5}, [16, 9, 4, 1]),
        ({"temperature": 2.0}, [2, math.sqrt(3), math.sqrt(2), 1]),
        ({"top_k": 2}, [4, 3, 0, 0]),
        ({"top_k": 9}, [4, 3, 2, 1]),
        ({"top_p": 0.75}, [4, 3, 2, 0]),
        ({"top_p": 0.68}, [4, 3, 0, 0]),
        ({"top_p": 1.0}, [4, 3, 2, 1]),
        ({"top_p": 1e-9}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.6}, [4, 3, 0, 0]),
        ({"banned": (0,), "top_p": 0.6}, [0, 3, 2, 0]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
        # The entropy is 1.28 nats, the surprisals 0.92, 1.20, 1.61 and 2.30.
        ({"typical_p": 0.2}, [0, 3, 0, 0]),
        ({"typical_p": 0.45}, [0, 3, 2, 0]),
        ({"typical_p": 0.6}, [4, 3, 2, 0]),
        ({"top_k": 2, "typical_p": 0.5}, [4, 0, 0, 0]),
    ],
)
def test_temperature_and_filters(settings, weight):
    expected = {i: w / sum(weight) for i, w in enumerate(weight) if w > 0}
    # at most 3 degrees of freedom: 16.3 is passed once in a thousand seeds
    assert chi_square(weights(**settings), expected) < 16.3


def test_filters_keep_the_lower_id_of_equals():
    kept = filtered(torch.full((1, 4), 0.25).log(), top_k=2, top_p=None)
    assert (kept[0] > -math.inf).tolist() == [True, True, False, False]
    kept = filtered(torch.tensor([[0.25, 0.5, 0.25]]).log(), top_k=None, top_p=0.6)
    assert (kept[0] > -math.inf).tolist() == [True, True, False]


def test_the_nucleus_stops_as_soon_as_it_holds_top_p():
    kept = filtered(torch.full((1, 4), 0.25).log(), top_k=None, top_p=0.5)
    assert (kept[0] > -math.inf).tolist() == [True, True, False, False]


def test_a_word_without_weight_is_never_drawn():
    weights = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    chances = torch.tensor([0.0, 0.49, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(weights.expand(4, 5), chances).tolist() == [1, 1, 3, 3]


def test_the_scores_are_the_models_own(tiny):
    model = tiny()
    [found] = sample(
        model.step, model.state(0), samples=8, temperature=3.0, generator=seeded(), **ARGUMENTS
    )
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        tokens = (*one.token_ids, 2) if one.finished else one.token_ids
        told = [model.after(0, tokens[:i])[token] for i, token in enumerate(tokens)]
        assert one.log_probs == pytest.approx(told)
        assert one.score == pytest.approx(sum(told) / len(told))


def test_a_seed_repeats_and_another_does_not(tiny):
    model = tiny()
    arguments = {**ARGUMENTS, "batch_size": 3, "samples": 20, "max_length": 6}
    first, again, other = (
        sample(model.step, model.state(0, 1, 2), generator=seeded(seed), **arguments)
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    torch.manual_seed(3)
    assert sample(model.step, model.state(0, 1, 2), **arguments) == first


def test_an_image_samples_the_same_in_any_batch(tiny):
    model = tiny()
    arguments = {**ARGUMENTS, "samples": 5, "max_length": 6}
    together = sample(
        model.step, model.state(0, 1, 2), generator=seeded(), **{**arguments, "batch_size": 3}
    )
    generator = seeded()
    for image in range(3):
        alone = sample(model.step, model.state(image), generator=generator, **arguments)
        assert alone == [together[image]]


def test_finished_rows_leave_the_batch(tiny):
    model = tiny(sharpness=1.0)
    [found] = sample(
        model.step,
        model.state(0),
        samples=50,
        generator=seeded(),
        **{**ARGUMENTS, "max_length": 6},
    )
    # before step t only the sentences of at least t words are still there
    expected = [sum(len(one.token_ids) >= t for one in found) for t in range(6)]
    assert model.rows == [rows for rows in expected if rows]
    assert model.rows[-1] < 50


def test_the_rules_hold(tiny, rules):
    model, rule = tiny(), rules(max_length=6, min_length=2, banned=(0,), no_repeat_ngram=2)
    [found] = sample(
        model.step,
        model.state(0),
        batch_size=1,
        samples=200,
        generator=seeded(),
        **rule.as_arguments(),
    )
    for one in found:
        tokens = (*one.token_ids, 2) if one.finished else one.token_ids
        assert all(rule.allow(tokens[:i], token) for i, token in enumerate(tokens))


def test_sampling_ends_whatever_the_model_says(constant):
    arguments = {**ARGUMENTS, "bos": 0, "eos": 1, "samples": 2}
    [never] = sample(constant([0.0, -math.inf]), None, **arguments)
    assert keys(never) == [((0, 0, 0), False)] * 2
    [nothing] = sample(constant([0.0, -math.inf]), None, banned=(0,), top_p=0.5, **arguments)
    assert keys(nothing) == [((), False)] * 2
    assert nothing[0].score == 0.0
    [stuck] = sample(constant([-0.1, -2.0]), None, no_repeat_ngram=1, min_length=3, **arguments)
    assert keys(stuck) == [((0,), False)] * 2
    [equal] = sample(constant([-math.log(2)] * 2), None, generator=seeded(), **arguments)
    assert all(len(one.token_ids) <= 3 for one in equal)
    with pytest.raises(NumericsError, match="nan as a log-probability at word 1"):
        sample(constant([math.nan, -1.0]), None, **arguments)


@pytest.mark.parametrize(
    "name, value",
    [
        ("samples", 0),
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("typical_p", 0.0),
        ("batch_size", 0),
        ("min_length", 4),
        ("length_penalty", -1.0),
    ],
)
def test_a_wrong_value_is_named(constant, name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        sample(constant([-1.0, -1.0, -1.0]), None, **{**ARGUMENTS, name: value})
