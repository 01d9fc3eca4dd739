"""Compare scored runs: two in pairs with tests and the images farthest apart, more in a table."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("compare")
