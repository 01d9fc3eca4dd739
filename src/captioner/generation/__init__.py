"""From one step function to ranked hypotheses, batched over images: greedy, beam, sampling."""

from captioner.generation.beam import beam_search, greedy
from captioner.generation.consensus import by_consensus
from captioner.generation.constraints import Constraints
from captioner.generation.hypothesis import Hypothesis, State, Step
from captioner.generation.sampling import SamplingParams, sample

__all__ = [
    "Constraints",
    "Hypothesis",
    "SamplingParams",
    "State",
    "Step",
    "beam_search",
    "by_consensus",
    "greedy",
    "sample",
]
