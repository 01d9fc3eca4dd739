"""Names that the schemas list as literals are those of the code that they choose from."""

from __future__ import annotations

from captioner import config
from captioner.build.models import KINDS
from captioner.data.formats import prepare
from captioner.data.text.codec import UNITS
from captioner.data.vocabulary import RARE
from captioner.evaluation.metrics import FAST, METRICS
from captioner.evaluation.protocol import PROTOCOLS
from captioner.features.source import VIEWS
from captioner.models.captioner import FEATURE_NORMS
from captioner.models.encoder import BATCH_NORMS
from captioner.models.layered_attention import JOINS
from captioner.models.rnn import RNN_KINDS
from captioner.ops import BACKENDS
from captioner.runs import upgrade
from captioner.training.optimisation import OPTIMIZERS, SCHEDULES
from captioner.training.reward import BASELINES, SEARCHES


def test_choices_are_those_of_the_code() -> None:
    assert config.UNITS == UNITS
    assert config.RARE == RARE
    assert set(config.VIEWS) == set(VIEWS)
    assert config.BATCH_NORMS == BATCH_NORMS
    assert config.FEATURE_NORMS == FEATURE_NORMS
    assert config.RNN_KINDS == RNN_KINDS
    assert config.JOINS == JOINS
    assert {one.kind for one in config.MODELS} == set(KINDS)
    assert set(config.BACKENDS) == set(BACKENDS)
    assert set(config.OPTIMIZERS) == set(OPTIMIZERS)
    assert config.SCHEDULES == SCHEDULES
    assert config.BASELINES == BASELINES
    assert config.SEARCHES == SEARCHES
    assert config.METRICS == METRICS
    assert set(config.PROTOCOLS) == set(PROTOCOLS)


def test_defaults_are_those_of_the_code() -> None:
    assert config.ScoringConfig().metrics == [*FAST, "METEOR-py"]
    given = config.PrepareConfig()
    assert (given.images_url, given.text_url) == (prepare.IMAGES_URL, prepare.TEXT_URL)


def test_new_names_of_old_ones_are_there() -> None:
    assert set(upgrade.GROUPS.values()) < set(config.GROUPS)
    assert not set(upgrade.GROUPS) & set(config.GROUPS)
