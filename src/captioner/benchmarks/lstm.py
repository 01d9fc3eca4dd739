"""suite=lstm: forward and backward of one LSTM layer over ragged captions, every backend.

Shapes: B sequences, T longest length, N packed tokens, H hidden size (= input size).

A backend is an entry of SIDES: a function from a `Case` to a call that runs forward and returns the
packed output [N, H] and the leaves to differentiate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from captioner.benchmarks.record import Axes, Figure, Requirement, SuiteResult
from captioner.benchmarks.timing import Spread, interleaved, paired_ratio
from captioner.benchmarks.workload import caption_lengths
from captioner.models.lstm import LSTM

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
# Largest difference to the padded nn.LSTM, to the largest value: what each type's rounding allows.
TOLERANCE = {"float32": 1e-4, "float64": 1e-10, "bfloat16": 0.05}
READ_FIRST = 2  # the image and <bos> come before a caption's words
MIN_SECONDS = 0.2
PEER = "padded"


@dataclass(frozen=True)
class Case:
    """One batch: rows [N, H], batch_sizes [T], the output's gradient [N, H], a layer's weights."""

    rows: Tensor
    batch_sizes: Tensor
    grad_output: Tensor
    layer: nn.LSTM

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.layer.hidden_size


@dataclass(frozen=True)
class Side:
    """A backend ready to run: `forward` gives the output, `grad_output` has its form."""

    forward: Callable[[], Tensor]
    grad_output: Tensor
    leaves: tuple[Tensor, ...]
    packed: Callable[[Tensor], Tensor] = lambda output: output

    def both(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Forward and backward: the output and the gradients of input and weights."""
        output = self.forward()
        return output, torch.autograd.grad(output, self.leaves, self.grad_output)


def _packed_side(backend: str) -> Callable[[Case], Side]:
    """This package's LSTM on `backend`, which takes the packed rows as they are."""

    def make(case: Case) -> Side:
        size = case.hidden_size
        layer = LSTM(size, size, backend=backend, device=case.rows.device, dtype=case.rows.dtype)
        layer.load_state_dict(case.layer.state_dict())
        rows = case.rows.clone().requires_grad_()
        return Side(
            forward=lambda: layer.forward_packed(rows, case.batch_sizes)[0],
            grad_output=case.grad_output,
            leaves=(rows, *layer.parameters()),
        )

    return make


def _padded_side(case: Case) -> Side:
    """torch.nn.LSTM on padded [T, B, H], made beforehand: it also computes the padding."""
    padded, lengths = pad_packed_sequence(PackedSequence(case.rows, case.batch_sizes))
    grad_output, _ = pad_packed_sequence(PackedSequence(case.grad_output, case.batch_sizes))
    steps = torch.arange(len(case.batch_sizes)).unsqueeze(1)
    alive = (steps < lengths).to(case.rows.device)
    rows = padded.clone().requires_grad_()
    return Side(
        forward=lambda: case.layer(rows)[0],
        grad_output=grad_output,
        leaves=(rows, *case.layer.parameters()),
        packed=lambda output: output[alive],
    )


SIDES: dict[str, Callable[[Case], Side]] = {
    "reference": _packed_side("reference"),
    "torch": _packed_side("torch"),
    PEER: _padded_side,
}


def lstm_suite(
    *,
    batch_sizes: Sequence[int],
    hidden_sizes: Sequence[int],
    dtypes: Sequence[str],
    backends: Sequence[str],
    repeats: int,
    device: torch.device,
    seed: int,
) -> SuiteResult:
    """Time the `backends`, and padded nn.LSTM beside them, on every batch, hidden size and type."""
    figures: list[Figure] = []
    requirements: list[Requirement] = []
    for dtype, hidden, batch in itertools.product(dtypes, hidden_sizes, batch_sizes):
        case = make_case(batch, hidden, dtype=DTYPES[dtype], device=device, seed=seed)
        sides = {name: SIDES[name](case) for name in dict.fromkeys([*backends, PEER])}
        axes: Axes = {"B": batch, "H": hidden, "dtype": dtype}
        figures += _times(sides, len(case.rows), axes, repeats, device)
        requirements += _differences(sides, TOLERANCE[dtype], axes)
    lengths = caption_lengths(10_000, seed=seed) + READ_FIRST
    settings = {
        "mean_length": round(float(lengths.mean()), 2),
        "longest_length": int(lengths.max()),
        "layers": 1,
        "seed": seed,
    }
    return SuiteResult(settings, figures, requirements)


def make_case(
    batch: int, hidden: int, *, dtype: torch.dtype, device: torch.device, seed: int
) -> Case:
    """A batch of captions as Flickr8k's, drawn from `seed`, and a layer with its first weights."""
    drawn = caption_lengths(10_000, seed=seed)
    lengths = torch.from_numpy(drawn[1 : batch + 1]) + READ_FIRST
    steps = torch.arange(int(lengths.max())).unsqueeze(1)
    batch_sizes = (steps < lengths).sum(1)
    generator = torch.Generator().manual_seed(seed)
    rows, grad_output = torch.randn(2, int(lengths.sum()), hidden, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = nn.LSTM(hidden, hidden).to(device, dtype)
    return Case(rows.to(device, dtype), batch_sizes, grad_output.to(device, dtype), layer)


def _times(
    sides: dict[str, Side], tokens: int, axes: Axes, repeats: int, device: torch.device
) -> list[Figure]:
    figures = []
    for what in ("forward", "forward and backward"):
        calls = {
            name: side.forward if what == "forward" else side.both for name, side in sides.items()
        }
        taken = interleaved(calls, repeats=repeats, device=device, min_seconds=MIN_SECONDS)
        for name, spread in taken.items():
            figures.append(Figure(what, name, "ms", spread.map(lambda s: 1e3 * s), axes))
            rate = spread.map(lambda s: tokens / s)
            figures.append(Figure(what, name, "tokens/s", rate, axes))
            if name != PEER:
                ratio = paired_ratio(taken[PEER], spread)
                figures.append(Figure(f"{what}, speed to {PEER}", name, "times", ratio, axes))
    return figures


def _differences(sides: dict[str, Side], tolerance: float, axes: Axes) -> list[Requirement]:
    """How far output and gradients lie from the peer's, to the largest value of each."""
    results = {name: _packed_results(side) for name, side in sides.items()}
    requirements = []
    for name, tensors in results.items():
        if name == PEER:
            continue
        pairs = zip(tensors, results[PEER], strict=True)
        apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        requirements.append(
            Requirement(
                f"largest difference of {name} to {PEER}", "times", Spread((apart,)),
                at_most=tolerance, axes=axes,
            )
        )  # fmt: skip
    return requirements


def _packed_results(side: Side) -> list[Tensor]:
    """Output and gradients in the packed form, in float64."""
    output, (grad_rows, *grad_weights) = side.both()
    return [
        x.detach().double() for x in (side.packed(output), side.packed(grad_rows), *grad_weights)
    ]
