"""The settings on the page: their bounds, which decoder has them, and what they mean to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captioner.checks import in_range, one_of
from captioner.config import GenerationConfig

GREEDY, BEAM, DIVERSE, SAMPLE = DECODERS = ("greedy", "beam", "diverse beam", "sample")


@dataclass(frozen=True)
class Setting:
    """A slider: the key it sets, its bounds, and the decoders that look at it (all: ())."""

    key: str
    label: str
    low: float
    high: float
    step: float = 1
    decoders: tuple[str, ...] = ()

    def belongs_to(self, decoder: str) -> bool:
        """Whether it changes what this decoder does."""
        return not self.decoders or decoder in self.decoders


TEMPERATURE = Setting("temperature", "Temperature", 0.1, 3, 0.05, (SAMPLE,))
TOP_K = Setting("top_k", "Top k (0: off)", 0, 200, 1, (SAMPLE,))
TOP_P = Setting("top_p", "Top p (1: off)", 0.05, 1, 0.05, (SAMPLE,))
SEED = Setting("seed", "Seed", 0, 9999, 1, (SAMPLE,))
CAPTION_SETTINGS = (
    Setting("n_best", "Captions shown", 1, 10, 1, (BEAM, DIVERSE, SAMPLE)),
    Setting("beam_size", "Beams", 1, 20, 1, (BEAM, DIVERSE)),
    Setting("length_penalty", "Length penalty", 0, 2, 0.1, (BEAM, DIVERSE)),
    Setting("groups", "Groups", 2, 10, 1, (DIVERSE,)),
    Setting("diversity", "Diversity", 0, 5, 0.1, (DIVERSE,)),
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SEED,
    Setting("max_length", "Longest caption, in words", 1, 50),
)
TEXT_SETTINGS = (
    Setting("length", "Length", 1, 20_000),
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SEED,
)
TEXT_DEFAULTS = {"length": 600, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 1}


def caption_defaults(generation: GenerationConfig) -> tuple[str, dict[str, float]]:
    """The decoder and every setting that the page begins with, from the configuration."""
    values = {setting.key: getattr(generation, setting.key) for setting in CAPTION_SETTINGS}
    values["top_k"] = values["top_k"] or 0
    values["top_p"] = values["top_p"] or 1.0
    decoder = generation.method
    if generation.method == "beam" and generation.groups > 1:
        decoder = DIVERSE
    elif generation.groups == 1:  # too few to be diverse: groups of a beam each
        values["groups"] = generation.beam_size
    bounded = {s.key: min(max(values[s.key], s.low), s.high) for s in CAPTION_SETTINGS}
    return decoder, bounded


def generation_config(
    generation: GenerationConfig, decoder: str, values: Mapping[str, float]
) -> GenerationConfig:
    """`generation` with a decoder of DECODERS and the values of CAPTION_SETTINGS.

    ConfigError when one is out of its bounds, or two do not go together.
    """
    one_of("decoder", decoder, DECODERS)
    chosen = checked(CAPTION_SETTINGS, values)
    if decoder != DIVERSE:
        chosen["groups"] = 1
    method = "beam" if decoder == DIVERSE else decoder
    return dataclasses.replace(generation, method=method, samples=chosen["n_best"], **chosen)


def checked(settings: Sequence[Setting], values: Mapping[str, float]) -> dict[str, Any]:
    """The values as decoders take them; ConfigError names the one that is out of its bounds."""
    found: dict[str, Any] = {}
    for setting in settings:
        value = values[setting.key]
        in_range(setting.label, value, setting.low, setting.high)
        found[setting.key] = int(value) if setting.step == 1 else float(value)
    # The ends of the scales that switch a filter off.
    found["top_k"] = found["top_k"] or None
    found["top_p"] = None if found["top_p"] >= 1 else found["top_p"]
    return found
