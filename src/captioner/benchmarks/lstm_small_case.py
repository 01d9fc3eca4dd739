"""A small ragged batch through the fused LSTM, for a sanitizer to watch: forward and backward.

Run as `python -m captioner.benchmarks.lstm_small_case DEVICE DTYPE...`; it fails where a result is
not the reference's.
"""

from __future__ import annotations

import sys

import torch

from captioner.benchmarks.lstm import TOLERANCE
from captioner.benchmarks.lstm_case import DTYPES
from captioner.models.lstm import LSTM

BATCH_SIZES = (5, 5, 3, 2, 2, 1)
INPUT_SIZE, HIDDEN_SIZE = 40, 64


def run_small_case(device: str, dtype: str, *, backend: str = "fused") -> float:
    """The largest difference of output and gradients to the reference, to the largest value."""
    torch.manual_seed(0)
    batch_sizes = torch.tensor(BATCH_SIZES)
    twin = LSTM(INPUT_SIZE, HIDDEN_SIZE, backend="reference").to(device, DTYPES[dtype])
    layer = LSTM(INPUT_SIZE, HIDDEN_SIZE, backend=backend).to(device, DTYPES[dtype])
    layer.load_state_dict(twin.state_dict())
    drawn = torch.randn(sum(BATCH_SIZES), INPUT_SIZE).to(device, DTYPES[dtype])
    grad_output = torch.randn(sum(BATCH_SIZES), HIDDEN_SIZE).to(device, DTYPES[dtype])
    found = []
    for module in (layer, twin):
        rows = drawn.clone().requires_grad_()
        output, _ = module.forward_packed(rows, batch_sizes)
        leaves = (rows, *module.parameters())
        found.append((output.detach(), *torch.autograd.grad(output, leaves, grad_output)))
    pairs = [(a.double(), b.double()) for a, b in zip(*found, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def main(arguments: list[str]) -> int:
    """Run each type; 1 where one is apart from the reference."""
    device, *dtypes = arguments
    worst = {dtype: run_small_case(device, dtype) for dtype in dtypes}
    for dtype, apart in worst.items():
        print(f"{dtype}: {apart:.3g} of the largest value apart, at most {TOLERANCE[dtype]:g}")
    return int(not all(apart <= TOLERANCE[dtype] for dtype, apart in worst.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
