"""A look inside a language model: which of its cells follow something that a reader sees too.

After Karpathy, Johnson & Fei-Fei (2016). Shapes: T characters, C cells (layers times H).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captioner.data.text.codec import TextCodec
from captioner.models.language_model import LanguageModel, State

_DARKEST = 0.65  # black letters stay legible


@torch.inference_mode()
def cell_states(model: LanguageModel, codec: TextCodec, text: str) -> Tensor:
    """The cells after each character of a text, [T, C], the first layer's first.

    They are an LSTM's c, squashed by tanh, and the h of another kind.
    """
    training = model.training
    model.eval()
    device = model.embedding.weight.device
    state: State | None = None
    found = []
    for token in codec.encode(text):
        rows = model.embedding(torch.tensor([token], device=device))
        _, state = model.read(rows.unsqueeze(0), state)
        found.append(state[-1].flatten())
    model.train(training)
    cells = torch.stack(found)
    return (cells.tanh() if model.lstm.mode == "LSTM" else cells).cpu()


@torch.inference_mode()
def gate_activations(
    lstm: nn.LSTM,
    inputs: Tensor,  # [T, E] of one sequence
) -> dict[str, Tensor]:
    """What the first layer's gates i, f, g, o, its cells c and its outputs h are: each [T, H].

    Computed from the formulas, in the order of nn.LSTM's weights.
    """
    weight_ih, weight_hh, *biases = lstm.all_weights[0]
    h = c = inputs.new_zeros(lstm.hidden_size)
    steps: list[tuple[Tensor, ...]] = []
    for x in inputs:
        sums = weight_ih @ x + weight_hh @ h + sum(biases)
        i, f, g, o = sums.chunk(4)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        steps.append((i, f, g, o, c, h))
    return {
        name: torch.stack(values)
        for name, values in zip("ifgoch", zip(*steps, strict=True), strict=True)
    }


def line_position(text: str) -> Tensor:
    """How many characters the line has so far, [T]; 0 for its end."""
    return _per_line(text, lambda line: [float(k + 1) for k in range(len(line))])


def indentation(text: str) -> Tensor:
    """How many spaces the line began with, as far as it is read, [T]."""

    def depths(line: str) -> list[float]:
        depth = len(line) - len(line.lstrip(" "))
        return [float(min(k + 1, depth)) for k in range(len(line))]

    return _per_line(text, depths)


def inside_quotes(text: str, quote: str = '"') -> Tensor:
    """1 after a quotation mark has opened, until one closes or the line ends, else 0; [T]."""

    def opened(line: str) -> list[float]:
        return [float(line[: k + 1].count(quote) % 2) for k in range(len(line))]

    return _per_line(text, opened)


def _per_line(text: str, values: Callable[[str], list[float]]) -> Tensor:
    found: list[float] = []
    for line in text.split("\n"):
        found += [*values(line), 0.0]
    return torch.tensor(found[: len(text)])


def correlations(cells: Tensor, values: Tensor) -> Tensor:
    """Pearson's, of every cell [T, C] with the values [T]: [C], 0 for what is constant."""
    cells = (cells - cells.mean(0)).double()
    values = (values - values.mean()).double()
    norms = cells.norm(dim=0) * values.norm()
    return torch.where(norms > 1e-9, values @ cells / norms.clamp(min=1e-9), 0.0)


def best_cell(cells: Tensor, values: Tensor) -> tuple[int, float]:
    """The cell that follows the values most closely, up or down, and its correlation."""
    found = correlations(cells, values)
    best = int(found.abs().argmax())
    return best, float(found[best])


def draw_text(axes: Any, text: str, values: Tensor, *, width: int = 80, title: str = "") -> None:
    """Write a text on matplotlib axes over the shade of a cell, -1 blue to 1 red; [T] values."""
    row, column = 0, 0
    for character, value in zip(text, values.tolist(), strict=True):
        if character == "\n" or column == width:
            row, column = row + 1, 0
        if character != "\n":
            light = 1 - _DARKEST * abs(value)
            colour = (1.0, light, light) if value > 0 else (light, light, 1.0)
            axes.add_patch(_square(column, row, colour))
            axes.text(column + 0.5, row + 0.5, character, family="monospace", size=7,
                      ha="center", va="center")  # fmt: skip
            column += 1
    axes.set(xlim=(0, width), ylim=(row + 1, 0), title=title)
    axes.axis("off")


def _square(column: int, row: int, colour: tuple[float, float, float]) -> Any:
    from matplotlib.patches import Rectangle  # only who draws needs it

    return Rectangle((column, row), 1, 1, color=colour, linewidth=0)
