"""What version 0.1 stored is read in today's names; what is of today stays as it is."""

from __future__ import annotations

from typing import Any

import pytest

from captioner.runs.upgrade import old_name, upgrade

OLD: dict[str, Any] = {
    "seed": 1,
    "data": {"kind": "scenes", "decoder": "a value of this name stays"},
    "decoder": {"hidden_size": 24, "backend": "clusters"},
    "decode": {"method": "beam", "beam_size": 3},
}
TODAY: dict[str, Any] = {
    "seed": 1,
    "data": {"kind": "scenes", "decoder": "a value of this name stays"},
    "model": {"hidden_size": 24, "backend": "cluster"},
    "generation": {"method": "beam", "beam_size": 3},
}


def test_groups_and_backend_have_todays_names() -> None:
    assert upgrade(OLD) == TODAY
    assert OLD["decoder"]["backend"] == "clusters", "the stored tree was changed"
    assert upgrade(TODAY) == TODAY


def test_a_protocol_of_stored_scores_has_todays_names() -> None:
    scores = {"BLEU-4": 21.5, "protocol": {"split": "dev", "decode": {"method": "greedy"}}}
    assert upgrade(scores) == {
        "BLEU-4": 21.5,
        "protocol": {"split": "dev", "generation": {"method": "greedy"}},
    }
    assert upgrade({"protocol": "coco"}) == {"protocol": "coco"}


@pytest.mark.parametrize("damaged", [None, 3, [1], "text"])
def test_what_is_no_mapping_is_refused(damaged: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        upgrade(damaged)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("decoder.hidden_size=256", "decoder.hidden_size is now called model.hidden_size"),
        ("decoder=show_and_tell", "decoder is now called model"),
        ("decode.beam_size=3,5", "decode.beam_size is now called generation.beam_size"),
        ("+decode=greedy", "decode is now called generation"),
        ("/decode", "decode is now called generation"),
        ("~decoder.init", "decoder.init is now called model.init"),
        (
            "model.backend=plain,clusters",
            "model.backend=clusters is now called model.backend=cluster",
        ),
        ("model.backend=cluster", None),
        ("model.hidden_size=256", None),
        ("data.path=decode=3", None),
    ],
)
def test_an_old_name_is_told_with_the_new(override: str, sentence: str | None) -> None:
    assert old_name(override) == sentence
