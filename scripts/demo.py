"""A page to try models on: `demo.py checkpoint=best.pt`, two captioners or a writer in a list."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("demo")
