"""suite=windows: the LSTM on windows of a text, where all lengths are equal, beside nn.LSTM.

Shapes: B streams, T window length, N = B * T tokens, H hidden size (= input size), L layers.

The peer is torch.nn.LSTM on [T, B, H] as one writes it. Both carry a state in and give it out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from captioner.benchmarks.record import Axes, Figure, Requirement, SuiteResult
from captioner.benchmarks.timing import interleaved, paired_ratio
from captioner.models.lstm import LSTM
from captioner.ops import choose_backend

PEER = "nn.LSTM"
WHAT = "forward and backward"


def windows_suite(
    *,
    batch_sizes: list[int],
    window: int,
    hidden_sizes: list[int],
    num_layers: int,
    repeats: int,
    device: torch.device,
    seed: int,
) -> SuiteResult:
    """Milliseconds of forward and backward, and their ratio, for every size."""
    backend = choose_backend("auto", device.type)
    figures: list[Figure] = []
    requirements: list[Requirement] = []
    for hidden in hidden_sizes:
        for batch in batch_sizes:
            axes: Axes = {"B": batch, "T": window, "H": hidden, "L": num_layers}
            torch.manual_seed(seed)
            sides = make_sides(batch, window, hidden, num_layers, backend, device)
            taken = interleaved(sides, repeats=repeats, device=device, warmup=2)
            speed = paired_ratio(taken[PEER], taken[backend])
            figures += [
                Figure(WHAT, side, "ms", spread.map(lambda value: 1000 * value), axes)
                for side, spread in taken.items()
            ]
            figures.append(Figure(f"{WHAT}, speed to {PEER}", backend, "times", speed, axes))
            promised = (batch, window, hidden, num_layers) == (64, 64, 512, 2)
            least = 1.3 if promised and device.type == "cpu" else 1.0
            requirements.append(
                Requirement(f"{WHAT}, speed to {PEER}", "times", speed, at_least=least, axes=axes)
            )
    return SuiteResult({"backend": backend, "dtype": "float32"}, figures, requirements)


def make_sides(
    batch: int, window: int, hidden: int, num_layers: int, backend: str, device: torch.device
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Both sides on the same numbers; each call gives the gradients of rows and weights."""
    peer = nn.LSTM(hidden, hidden, num_layers).to(device)
    mine = LSTM(hidden, hidden, num_layers, backend=backend, device=device)
    mine.load_state_dict(peer.state_dict())
    rows = torch.randn(window, batch, hidden, device=device, requires_grad=True)
    packed = rows.detach().flatten(0, 1).requires_grad_()
    grad = torch.randn(window, batch, hidden, device=device)
    state = (
        torch.randn(num_layers, batch, hidden, device=device),
        torch.randn(num_layers, batch, hidden, device=device),
    )
    sizes = torch.full((window,), batch)

    def by_peer() -> tuple[Tensor, ...]:
        output, _ = peer(rows, state)
        return torch.autograd.grad(output, (rows, *peer.parameters()), grad)

    def by_mine() -> tuple[Tensor, ...]:
        output, _ = mine.forward_packed(packed, sizes, state)
        return torch.autograd.grad(output, (packed, *mine.parameters()), grad.flatten(0, 1))

    return {PEER: by_peer, backend: by_mine}
