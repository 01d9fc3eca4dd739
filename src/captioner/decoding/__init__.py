"""Decoders: from one step function to ranked hypotheses, batched over images."""

from captioner.decoding.beam import beam_search
from captioner.decoding.constraints import Constraints
from captioner.decoding.greedy import greedy
from captioner.decoding.hypothesis import Hypothesis, State, Step
from captioner.decoding.sampling import sample

__all__ = ["Constraints", "Hypothesis", "State", "Step", "beam_search", "greedy", "sample"]
