"""Typed schemas of the configuration: every key, its type, its default and what it may be.

Hydra checks keys and types while it composes; the values are checked when OmegaConf turns the
composed tree into these dataclasses (`parse`). Only commands/ and build/ read them. What a key may
be stands here as a literal, so that nothing is imported; a test compares it with the code it names.
"""

from captioner.config.commands import *
from captioner.config.data import *
from captioner.config.model import *
from captioner.config.recipe import *
from captioner.config.registry import *
from captioner.config.trained import *
from captioner.config.training import *
