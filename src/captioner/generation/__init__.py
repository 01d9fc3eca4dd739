"""Decoders: from one step function to ranked hypotheses, batched over images."""

from captioner.generation.beam import beam_search
from captioner.generation.constraints import Constraints
from captioner.generation.greedy import greedy
from captioner.generation.hypothesis import Hypothesis, State, Step
from captioner.generation.sampling import sample

__all__ = ["Constraints", "Hypothesis", "State", "Step", "beam_search", "greedy", "sample"]
