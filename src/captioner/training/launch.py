"""What a process knows of the others that torchrun started, before it has joined them.

Apart from `distributed`, because a command line is read without torch.
"""

import os
import sys

from captioner.errors import ConfigError

ADVICE = "start several processes with torchrun, or unset WORLD_SIZE"


def started_together() -> int:
    """How many processes torchrun has started; 1 without it.

    ConfigError where the environment names several and does not say how they meet.
    """
    size = _number("WORLD_SIZE", 1, 2**31 - 1)
    if size is None or size == 1:
        return 1
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"WORLD_SIZE={size} is set, but not {', '.join(missing)}: {ADVICE}")
    _number("RANK", 0, size - 1)
    _number("LOCAL_RANK", 0, size - 1)
    _number("MASTER_PORT", 1, 65535)
    return size


def _number(name: str, low: int, high: int) -> int | None:
    """A number of the environment; None where it is not set, ConfigError where it is none."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and low <= int(text) <= high):
        raise ConfigError(f"{name} must be a number from {low} to {high}, got {text!r}: {ADVICE}")
    return int(text)


def refuse(command: str) -> None:
    """End a command that torchrun started, and that takes one process only, with one sentence."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {command} is one process; start it without torchrun", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)  # a failure here could end rank 0 before it has said why
