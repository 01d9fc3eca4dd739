"""Let a language model write: `sample.py checkpoint=best.pt prompt="ROMEO:" temperature=0.8`."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("sample")
