"""A batch of captions through the kernels on the chip, for a profiler to count.

Run as `python -m benchmarks.lstm_counted_case`, on a GPU: E = H = 512, B = 64.
"""

from __future__ import annotations

import torch

from benchmarks.lstm_case import Cell, make_case
from benchmarks.lstm_sides import ON_CHIP, SIDES, takes


def main() -> None:
    """Forward and backward of each way that the GPU holds."""
    device, cell = torch.device("cuda"), Cell("flickr8k", "bfloat16", 512, 64)
    case = make_case(cell, device=device, seed=0, data_root=None)
    for name in ON_CHIP:
        if takes(name, cell, device):
            SIDES[name](case).both()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
