"""The demo's settings: their bounds, the methods of generation that have them, their meaning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captioner.checks import in_range, one_of
from captioner.errors import ConfigError

GREEDY, BEAM, DIVERSE, SAMPLE = METHODS = ("greedy", "beam", "diverse beam", "sample")


@dataclass(frozen=True)
class Setting:
    """A slider: the key it sets, its bounds, and the methods that use it (all: ())."""

    key: str
    label: str
    low: float
    high: float
    step: float = 1
    methods: tuple[str, ...] = ()

    def used_by(self, method: str) -> bool:
        """Whether it changes what this method does."""
        return not self.methods or method in self.methods


SAMPLING_SETTINGS = (
    Setting("temperature", "Temperature", 0.1, 3, 0.05, (SAMPLE,)),
    Setting("top_k", "Top k (0: off)", 0, 200, 1, (SAMPLE,)),
    Setting("top_p", "Top p (1: off)", 0.05, 1, 0.05, (SAMPLE,)),
    Setting("seed", "Seed", 0, 9999, 1, (SAMPLE,)),
)
CAPTION_SETTINGS = (
    Setting("n_best", "Captions shown", 1, 10, 1, (BEAM, DIVERSE, SAMPLE)),
    Setting("beam_size", "Beams", 1, 20, 1, (BEAM, DIVERSE)),
    Setting("length_penalty", "Length penalty", 0, 2, 0.1, (BEAM, DIVERSE)),
    Setting("groups", "Groups", 2, 10, 1, (DIVERSE,)),
    Setting("diversity", "Diversity", 0, 5, 0.1, (DIVERSE,)),
    *SAMPLING_SETTINGS,
    Setting("max_length", "Longest caption, in words", 1, 50),
)
TEXT_SETTINGS = (Setting("length", "Length", 1, 20_000), *SAMPLING_SETTINGS)
LONGEST_PROMPT = 2000  # characters
TEXT_DEFAULTS = {"length": 600, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 1}


def caption_defaults(generation: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The method and every setting that the demo starts with, from the configured values."""
    method, values = generation["method"], {s.key: generation[s.key] for s in CAPTION_SETTINGS}
    values["top_k"] = values["top_k"] or 0
    values["top_p"] = values["top_p"] or 1.0
    if method == "beam" and values["groups"] > 1:
        method = DIVERSE
    elif values["groups"] == 1:  # too few for diverse beam search, which starts with one beam each
        values["groups"] = values["beam_size"]
    bounded = {s.key: min(max(values[s.key], s.low), s.high) for s in CAPTION_SETTINGS}
    return method, bounded


def generation_values(method: str, values: Mapping[str, float]) -> dict[str, Any]:
    """The values of CAPTION_SETTINGS and a method of METHODS as values of the configuration.

    ConfigError when one is out of its bounds.
    """
    one_of("method", method, METHODS)
    chosen = checked(CAPTION_SETTINGS, values)
    if method != DIVERSE:
        chosen["groups"] = 1
    method = "beam" if method == DIVERSE else method
    return {**chosen, "method": method, "samples": chosen["n_best"]}


def checked_prompt(prompt: Any) -> str:
    """The prompt; ConfigError for what is no text, or one that is too long."""
    if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
        raise ConfigError(f"Prompt must be text of at most {LONGEST_PROMPT:,} characters")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ConfigError("Prompt must be characters, found half of a surrogate pair")
    return prompt


def checked(settings: Sequence[Setting], values: Mapping[str, float]) -> dict[str, Any]:
    """The values as generation takes them; ConfigError names the one that is out of its bounds."""
    found: dict[str, Any] = {}
    for setting in settings:
        value = values[setting.key]
        if value is None:  # a field that was emptied
            raise ConfigError(f"{setting.label} must be a number, and is empty")
        in_range(setting.label, value, setting.low, setting.high)
        found[setting.key] = int(value) if setting.step == 1 else float(value)
    # The values that switch a filter off.
    found["top_k"] = found["top_k"] or None
    found["top_p"] = None if found["top_p"] >= 1 else found["top_p"]
    return found
