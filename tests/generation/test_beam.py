"""Beam search against brute force and a plain search to the end, and at its edges."""

from __future__ import annotations

import math

import pytest
import torch
from flat_generation import beam_search

from captioner.errors import ConfigError, NumericsError
from captioner.generation.beam import best_tokens

RULES = [
    {},
    {"min_length": 2},
    {"min_length": 4},
    {"banned": (0, 1)},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2, "min_length": 1, "banned": (1,)},
]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("given", RULES)
def test_a_beam_that_holds_everything_is_exact(
    tiny, rules, enumerate_all, same, given, length_penalty
):
    model, rule = tiny(), rules(max_length=4, **given)
    found = beam_search(
        model.step,
        model.state(0, 1),
        batch_size=2,
        beam_size=5**4,
        length_penalty=length_penalty,
        **rule.as_arguments(),
    )
    for image in (0, 1):
        same(found[image], enumerate_all(model, image, rule, length_penalty))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups, diversity", [(1, 0.0), (2, 0.5), (4, 1.5)])
def test_stopping_early_changes_nothing(
    tiny, rules, plain_search, same, seed, length_penalty, groups, diversity
):
    model = tiny(vocab_size=6, seed=seed)
    rule = rules(max_length=7, min_length=seed % 3, no_repeat_ngram=seed)
    settings = {
        "beam_size": 4,
        "length_penalty": length_penalty,
        "groups": groups,
        "diversity": diversity,
    }
    arguments = {**rule.as_arguments(), **settings}
    found = beam_search(model.step, model.state(0, 1, 2), batch_size=3, **arguments)
    for image in range(3):
        same(found[image], plain_search(model, image, rule, **settings))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_an_image_gets_the_same_alone_and_in_a_batch(tiny, kind, groups):
    model = tiny(vocab_size=9, images=12, seed=5)
    if kind == "tied":
        # a handful of distinct values: ties inside a beam, between beams and at the beam's edge
        model.output = model.output.round()
        model.starts, model.words = model.starts.sign(), model.words.sign()
        model.recurrent = torch.zeros(4, 4, dtype=torch.float64)
    arguments = {"bos": 1, "eos": 2, "beam_size": 3, "groups": groups, "diversity": 0.5}
    arguments |= {"max_length": 8, "banned": (0, 1)}
    together = beam_search(model.step, model.state(*range(12)), batch_size=12, **arguments)
    for image in range(12):
        alone = beam_search(model.step, model.state(image), batch_size=1, **arguments)
        assert alone == [together[image]]


def test_finished_images_leave_the_batch_and_the_search_stops(tiny):
    model = tiny(images=2, vocab_size=6)

    def step(token_ids, state):
        log_probs, new = model.step(token_ids, {"h": state["h"]})
        # images flagged 0 want to end at once, the others never do
        log_probs[:, 2] = torch.where(state["flag"][0, :, 0] == 0, -1e-9, -math.inf)
        others = log_probs[:, [0, 1, 3, 4, 5]].log_softmax(1)
        others[state["flag"][0, :, 0] == 0] -= 30.0
        log_probs[:, [0, 1, 3, 4, 5]] = others
        return log_probs, {"h": new["h"], "flag": state["flag"]}

    state = model.state(0, 1, 0, 1) | {"flag": torch.tensor([0, 1, 0, 0]).view(1, 4, 1)}
    found = beam_search(
        step, state, batch_size=4, bos=1, eos=2, beam_size=2, max_length=6, n_best=1
    )
    assert model.rows == [8, 2, 2, 2, 2, 2]
    assert [one[0].finished for one in found] == [True, False, True, True]
    assert len(found[1][0].token_ids) == 6


def test_n_best_is_the_head_of_the_longer_list(tiny):
    model = tiny(vocab_size=6)
    arguments = {"batch_size": 3, "bos": 1, "eos": 2, "beam_size": 4, "max_length": 7}
    whole = beam_search(model.step, model.state(0, 1, 2), **arguments)
    rows = len(model.rows)
    best = beam_search(model.step, model.state(0, 1, 2), n_best=1, **arguments)
    assert best == [one[:1] for one in whole]
    assert len(model.rows) - rows <= rows


def test_scores_are_the_models_log_probs_over_the_length(tiny):
    model = tiny()
    found = beam_search(
        model.step,
        model.state(0),
        batch_size=1,
        bos=1,
        eos=2,
        beam_size=3,
        max_length=5,
        length_penalty=0.6,
    )
    for one in found[0]:
        assert len(one.log_probs) == len(one.token_ids) + one.finished
        assert one.score == pytest.approx(sum(one.log_probs) / len(one.log_probs) ** 0.6)
        prefix = one.token_ids[: len(one.log_probs) - 1]
        last = 2 if one.finished else one.token_ids[-1]
        assert one.log_probs[-1] == pytest.approx(model.after(0, prefix)[last])


def test_diversity_parts_the_groups(constant):
    step = constant(torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist())
    arguments = {"batch_size": 1, "bos": 0, "eos": None, "beam_size": 3, "max_length": 1}
    same = beam_search(step, None, groups=3, **arguments)
    assert [one.token_ids for one in same[0]] == [(0,)]
    # 0.5 / e < 0.3: the second group turns to 1; 0.15 < 0.5 / e: the third stays with 0
    parted = beam_search(step, None, groups=3, diversity=1.0, **arguments)
    assert [one.token_ids for one in parted[0]] == [(0,), (1,)]
    far = beam_search(step, None, groups=3, diversity=5.0, **arguments)
    assert [one.token_ids for one in far[0]] == [(0,), (1,), (2,)]
    assert far[0][2].score == pytest.approx(math.log(0.15))


def test_equals_go_to_the_better_beam_then_the_lower_id(constant):
    step = constant([-math.log(4)] * 4)
    found = beam_search(
        step, None, batch_size=2, bos=0, eos=None, beam_size=3, max_length=2, banned=(1,)
    )
    assert [one.token_ids for one in found[0]] == [(0, 0), (0, 2), (0, 3)]
    assert found[0] == found[1]


def test_best_tokens_takes_the_lower_id_of_equals():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-4, 0, (200, 30), generator=generator).float()
    values[values == -4] = -math.inf
    best, ids = best_tokens(values, 6)
    expected = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(best, expected.values[:, :6])
    finite = best > -math.inf
    assert torch.equal(ids[finite], expected.indices[:, :6][finite])


@pytest.mark.parametrize("beam_size, groups", [(1, 1), (4, 1), (4, 2)])
def test_a_model_that_never_ends_is_stopped(constant, beam_size, groups):
    step = constant([-0.5, -1.0, -math.inf])
    found = beam_search(
        step,
        None,
        batch_size=2,
        bos=0,
        eos=2,
        beam_size=beam_size,
        groups=groups,
        diversity=1.0,
        max_length=5,
    )
    for one in found:
        assert one[0].token_ids == (0,) * 5
        assert not any(hypothesis.finished for hypothesis in one)


def test_nothing_allowed_gives_what_there_is(constant):
    arguments = {"batch_size": 2, "bos": 0, "eos": 2, "max_length": 5, "beam_size": 3}
    step = constant([0.0, -math.inf, -math.inf])
    found = beam_search(step, None, banned=(0,), **arguments)
    assert [[(one.token_ids, one.score, one.finished) for one in image] for image in found] == [
        [((), 0.0, False)]
    ] * 2
    # each word once, then no continuation: what there is, though shorter than min_length
    step = constant([-0.6, -0.8, -9.0])
    stuck = beam_search(step, None, no_repeat_ngram=1, min_length=4, **arguments)
    assert [one.token_ids for one in stuck[0]] == [(0, 1), (1, 0)]
    assert not stuck[0][0].finished


def test_a_dead_end_yields_to_a_sentence(constant):
    # 0 is likeliest and leads nowhere (no repeats); a hypothesis that ended must win all the same
    step = constant([-0.1, -math.inf, -3.0])
    found = beam_search(
        step, None, batch_size=1, bos=0, eos=2, beam_size=2, max_length=4, no_repeat_ngram=1
    )
    assert {one.token_ids for one in found[0]} == {(), (0,)}
    assert all(one.finished for one in found[0])


def test_fewer_hypotheses_than_beams(constant):
    arguments = {"batch_size": 1, "bos": 0, "beam_size": 4, "max_length": 3}
    only_end = beam_search(constant([0.0]), None, eos=0, **arguments)
    assert [one.token_ids for one in only_end[0]] == [()]
    assert only_end[0][0].finished
    no_end = beam_search(constant([0.0]), None, eos=None, **arguments)
    assert [one.token_ids for one in no_end[0]] == [(0, 0, 0)]
    two = beam_search(constant([-0.7, -0.7]), None, eos=1, **arguments)
    assert sorted(one.token_ids for one in two[0]) == [(), (0,), (0, 0), (0, 0, 0)]


def test_a_nan_is_named(tiny):
    model = tiny()
    model.words[3] = math.nan
    arguments = {"batch_size": 1, "bos": 1, "eos": 2, "beam_size": 5, "max_length": 4}
    with pytest.raises(NumericsError, match="nan as a log-probability at word 2"):
        beam_search(model.step, model.state(0), min_length=4, **arguments)


def test_logits_in_place_of_log_probs_are_refused(constant):
    with pytest.raises(NumericsError, match="at most 0"):
        beam_search(
            constant([3.0, 1.0]), None, batch_size=1, bos=0, eos=1, beam_size=2, max_length=2
        )


def test_the_step_and_the_state_are_left_alone(tiny):
    model = tiny()
    state = model.state(0, 1)
    before = state["h"].clone()
    kept = []

    def step(token_ids, state):
        log_probs, state = model.step(token_ids, state)
        kept.append((log_probs, log_probs.clone()))
        return log_probs, state

    beam_search(
        step,
        state,
        batch_size=2,
        bos=1,
        eos=2,
        beam_size=4,
        groups=2,
        diversity=1.0,
        max_length=4,
        banned=(0,),
        no_repeat_ngram=1,
    )
    assert torch.equal(state["h"], before)
    assert all(torch.equal(now, then) for now, then in kept)


@pytest.mark.parametrize(
    "name, value",
    [
        ("beam_size", 0),
        ("batch_size", 0),
        ("bos", -1),
        ("n_best", 0),
        ("n_best", 5),
        ("groups", 3),
        ("groups", 0),
        ("diversity", -1.0),
        ("diversity", math.nan),
        ("length_penalty", -0.1),
        ("length_penalty", math.inf),
    ],
)
def test_a_wrong_value_is_named(constant, name, value):
    arguments = {"batch_size": 1, "bos": 0, "eos": 1, "beam_size": 4, "max_length": 3}
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        beam_search(constant([-0.7, -0.7]), None, **{**arguments, name: value})


def test_a_state_of_another_batch_is_refused(tiny):
    model = tiny()
    with pytest.raises(ConfigError, match=r"the batch, 3, as its dim 1, got shape \[1, 2, 4\]"):
        beam_search(
            model.step, model.state(0, 1), batch_size=3, bos=1, eos=2, beam_size=2, max_length=3
        )
