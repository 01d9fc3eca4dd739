"""The mean of the weights of several checkpoints: `average.py checkpoint=[a.pt,b.pt] out=c.pt`."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("average")
