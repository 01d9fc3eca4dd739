"""suite=windows: embedding and LSTM on windows of a text, all lengths equal, beside nn.LSTM.

Shapes: B streams, T window length, N = B * T tokens, V characters, H hidden size (= embedding
size), L layers.

The peer is torch.nn.Embedding and torch.nn.LSTM on [T, B, H] as one writes them. "shared" is what
the language model runs where its input has no dropout: a character's product with the first
layer's weights is computed once a window. All carry a state in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import Axes, Figure, Requirement, SuiteResult
from benchmarks.timing import interleaved, paired_ratio
from captioner.models.lstm import LSTM
from captioner.ops import choose_backend

PEER, SHARED = "nn.LSTM", "shared"
CHARACTERS = 65  # as tiny Shakespeare has
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
            figures += [
                Figure(WHAT, side, "ms", spread.map(lambda value: 1000 * value), axes)
                for side, spread in taken.items()
            ]
            for side in (backend, SHARED):
                speed = paired_ratio(taken[PEER], taken[side])
                what = f"{WHAT}, speed of {side} to {PEER}"
                promised = (batch, window, hidden, num_layers) == (64, 64, 512, 2)
                faster = side == SHARED and promised and device.type == "cpu"
                requirements.append(
                    Requirement(what, "times", speed, at_least=1.3 if faster else 1.0, axes=axes)
                )
    return SuiteResult(
        {"backend": backend, "dtype": "float32", "V": CHARACTERS}, figures, requirements
    )


def make_sides(
    batch: int, window: int, hidden: int, num_layers: int, backend: str, device: torch.device
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """The sides on the same numbers; each call gives the gradients of embedding and weights."""
    peer = nn.LSTM(hidden, hidden, num_layers).to(device)
    mine = LSTM(hidden, hidden, num_layers, backend=backend, device=device)
    mine.load_state_dict(peer.state_dict())
    table = torch.randn(CHARACTERS, hidden, device=device, requires_grad=True)
    ids = torch.randint(CHARACTERS, (window * batch,), device=device)
    grad = torch.randn(window, batch, hidden, device=device)
    h, c = torch.randn(2, num_layers, batch, hidden, device=device)
    sizes = torch.full((window,), batch)

    def by_peer() -> tuple[Tensor, ...]:
        output, _ = peer(F.embedding(ids, table).view(window, batch, hidden), (h, c))
        return torch.autograd.grad(output, (table, *peer.parameters()), grad)

    def by_rows() -> tuple[Tensor, ...]:
        output, _ = mine.forward_packed(F.embedding(ids, table), sizes, (h, c))
        return torch.autograd.grad(output, (table, *mine.parameters()), grad.flatten(0, 1))

    def shared() -> tuple[Tensor, ...]:
        seen, rows = ids.unique(return_inverse=True)
        output, _ = mine.forward_packed(F.embedding(seen, table), sizes, (h, c), input_rows=rows)
        return torch.autograd.grad(output, (table, *mine.parameters()), grad.flatten(0, 1))

    return {PEER: by_peer, backend: by_rows, SHARED: shared}
