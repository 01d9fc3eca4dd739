"""Build, test and measure the kernels on a machine with a GPU: `make gpu-check`."""

from __future__ import annotations

import sys

from captioner.benchmarks.gpu_check import main

if __name__ == "__main__":
    sys.exit(main())
