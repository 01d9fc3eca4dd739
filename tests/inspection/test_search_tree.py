"""The tree of a search holds the beams of every step, with the probabilities of the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.generation import Constraints, beam_search
from captioner.inspection.search_tree import draw_search_tree, search_tree

# After <bos> 0: 2 or 3; after each of them 2, 3 or the end 1; log-probabilities by the last token.
CHANCES = torch.tensor(
    [[0.0, 0.0, 0.6, 0.4], [0.25] * 4, [0.0, 0.1, 0.2, 0.7], [0.0, 0.9, 0.05, 0.05]]
)


def step(tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return CHANCES[tokens].log(), state


def test_the_tree_holds_the_beam_of_every_step() -> None:
    found = [
        beam_search(
            step,
            torch.zeros(1, 1, 1),
            Constraints(bos=0, eos=1, max_length=length, length_penalty=0.0),
            batch_size=1,
            beam_size=2,
        )[0]
        for length in (1, 2, 3)
    ]
    tree = search_tree(found)
    assert {prefix: round(math.exp(p), 2) for prefix, p in tree.items()} == {
        (2,): 0.6,
        (3,): 0.4,
        (2, 3): 0.7,
    }
    assert all(prefix[:-1] in tree for prefix in tree if len(prefix) > 1)


def test_it_is_drawn_with_every_word_once() -> None:
    import pytest

    pytest.importorskip("matplotlib", reason="the extra [plots] is not installed")
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    tree = {(2,): -0.5, (3,): -0.9, (2, 3): -0.3}
    draw_search_tree(axes, tree, best=(2, 3), word=lambda token: f"w{token}")
    texts = {text.get_text().split("\n")[0]: text for text in axes.texts}
    assert sorted(text.get_text().split("\n")[0] for text in axes.texts) == ["w2", "w3", "w3"]
    assert len(axes.lines) == 1 and texts["w2"].get_color() == "#2a6fbb"
