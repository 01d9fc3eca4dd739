"""Build, test and measure the kernels on a machine with a GPU: `make gpu-check`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is no part of what is installed

from benchmarks.gpu_check import main
from captioner.commands.failures import one_sentence

if __name__ == "__main__":
    with one_sentence("gpu_check"):
        sys.exit(main())
