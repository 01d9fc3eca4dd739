"""Greedy decoding: the likeliest token at each step, which is a beam of one."""

from __future__ import annotations

from collections.abc import Sequence

from captioner.generation.beam import beam_search
from captioner.generation.hypothesis import Hypothesis, State, Step


def greedy(
    step: Step,
    state: State,
    *,
    batch_size: int,
    bos: int,
    eos: int | None,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 1.0,
    banned: Sequence[int] = (),
    no_repeat_ngram: int = 0,
) -> list[list[Hypothesis]]:
    """Return one hypothesis for each image: the argmax at each step, the lower id of equals.

    Arguments and errors are those of `beam_search`; `length_penalty` only scales the score that is
    reported.
    """
    return beam_search(
        step,
        state,
        batch_size=batch_size,
        bos=bos,
        eos=eos,
        beam_size=1,
        max_length=max_length,
        min_length=min_length,
        length_penalty=length_penalty,
        banned=banned,
        no_repeat_ngram=no_repeat_ngram,
    )
