"""A checkpoint's own settings, of which a command line changes single keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from composed import compose_config

from captioner.commands.trained import data_of, generation_of
from captioner.config import Flickr8kData, GenerationConfig, ScenesData
from captioner.errors import ConfigError
from captioner.training.checkpoint import Checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
OWN = {"method": "greedy", "length_penalty": 0.5, "max_length": 12}
CHECKPOINT = Checkpoint({}, {"config": json.dumps({"generation": OWN})})


def evaluation(*overrides: str) -> Any:
    return compose_config("evaluate", ["checkpoint=best.pt", *overrides], configs=CONFIGS)


def test_without_overrides_everything_is_the_runs() -> None:
    config, data = evaluation(), Flickr8kData(root="here")
    assert generation_of(CHECKPOINT, config.generation) == GenerationConfig(**OWN)
    assert data_of(data, config.data) == data


def test_single_keys_change_the_runs() -> None:
    config = evaluation("generation.n_best=2", "data.root=there")
    found = generation_of(CHECKPOINT, config.generation)
    assert found == GenerationConfig(**{**OWN, "n_best": 2})
    data = data_of(Flickr8kData(root="here", layout="kaggle"), config.data)
    assert data == Flickr8kData(root="there", layout="kaggle")


def test_a_beam_size_asks_for_beam_search() -> None:
    found = generation_of(CHECKPOINT, evaluation("generation.beam_size=4").generation)
    assert (found.method, found.beam_size, found.length_penalty) == ("beam", 4, 0.5)


def test_a_choice_of_the_group_takes_nothing_of_the_runs() -> None:
    config = evaluation("generation=beam", "data=scenes", "data.train=7")
    assert generation_of(CHECKPOINT, config.generation) == GenerationConfig()
    assert data_of(Flickr8kData(root="here"), config.data) == ScenesData(train=7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.size=64", "an option of data=flickr8k must be one of root, layout, got 'size'"),
        ("data.layout=kagle", "data.layout must be one of .* did you mean 'kaggle'"),
        ("generation.max_length=0", "generation.max_length must be at least 1"),
        ("generation.beam_size=wide", "could not be converted to Integer"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config = evaluation(override)
        generation_of(CHECKPOINT, config.generation)
        data_of(Flickr8kData(root="here"), config.data)
