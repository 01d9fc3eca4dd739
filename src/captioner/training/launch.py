"""What a process knows of the others that torchrun started, before it has joined them.

Apart from `distributed`, because a command line is read without torch.
"""

import os
import sys


def started_together() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse(command: str) -> None:
    """End a command that torchrun started, and that takes one process only, with one sentence."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {command} is one process; start it without torchrun", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)  # a failure here could end rank 0 before it has said why
