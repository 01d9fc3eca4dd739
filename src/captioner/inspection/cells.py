"""Inside a language model: the states of its cells, and how they correlate with features of text.

After Karpathy, Johnson & Fei-Fei (2016). Shapes: T characters, C cells (layers times H).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captioner.data.text.codec import TextCodec
from captioner.models.cells import SteppedLSTM
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
    """The first layer's gates i, f, g, o, cells c and outputs h, by the formulas: each [T, H].

    ValueError for an LSTM with another cell, whose formulas these are not.
    """
    if isinstance(lstm, SteppedLSTM):
        raise ValueError(f"gate_activations needs the plain LSTM, got {type(lstm).__name__}")
    weight_ih, weight_hh, *biases = lstm.all_weights[0]
    h = c = inputs.new_zeros(lstm.hidden_size)
    steps: list[tuple[Tensor, ...]] = []
    for x in inputs:
        i, f, g, o = (weight_ih @ x + weight_hh @ h + sum(biases)).chunk(4)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        steps.append((i, f, g, o, c, h))
    columns = (torch.stack(values) for values in zip(*steps, strict=True))
    return dict(zip("ifgoch", columns, strict=True))


def line_position(text: str) -> Tensor:
    """How many characters the line has so far, [T]; 0 for its end."""
    return _per_line(text, lambda line, k: k + 1)


def indentation(text: str) -> Tensor:
    """How many spaces the line began with, as far as it is read, [T]."""
    return _per_line(text, lambda line, k: min(k + 1, len(line) - len(line.lstrip(" "))))


def inside_quotes(text: str, quote: str = '"') -> Tensor:
    """1 after a quotation mark has opened, until one closes or the line ends, else 0; [T]."""
    return _per_line(text, lambda line, k: line[: k + 1].count(quote) % 2)


def _per_line(text: str, value: Callable[[str, int], int]) -> Tensor:
    """`value` of each line and each position in it, 0 for the line's end."""
    found: list[float] = []
    for line in text.split("\n"):
        found += [*(float(value(line, k)) for k in range(len(line))), 0.0]
    return torch.tensor(found[: len(text)])


def correlations(cells: Tensor, values: Tensor) -> Tensor:
    """Pearson's, of every cell [T, C] with the values [T]: [C], 0 for a constant cell."""
    cells = (cells - cells.mean(0)).double()
    values = (values - values.mean()).double()
    norms = cells.norm(dim=0) * values.norm()
    return torch.where(norms > 1e-9, values @ cells / norms.clamp(min=1e-9), 0.0)


def best_cell(cells: Tensor, values: Tensor) -> tuple[int, float]:
    """The cell of the largest absolute correlation with the values [T], and its correlation."""
    found = correlations(cells, values)
    best = int(found.abs().argmax())
    return best, float(found[best])


def draw_text(axes: Any, text: str, values: Tensor, *, width: int = 80, title: str = "") -> None:
    """Write a text on matplotlib axes, shaded by a cell's values [T], -1 blue to 1 red."""
    from matplotlib.patches import Rectangle  # an optional dependency

    style = {"family": "monospace", "size": 7, "ha": "center", "va": "center"}
    row, column = 0, 0
    for character, value in zip(text, values.tolist(), strict=True):
        if character == "\n" or column == width:
            row, column = row + 1, 0
        if character != "\n":
            light = 1 - _DARKEST * abs(value)
            colour = (1.0, light, light) if value > 0 else (light, light, 1.0)
            axes.add_patch(Rectangle((column, row), 1, 1, color=colour, linewidth=0))
            axes.text(column + 0.5, row + 0.5, character, **style)
            column += 1
    axes.set(xlim=(0, width), ylim=(row + 1, 0), title=title)
    axes.axis("off")
