"""Train the stages of a recipe one after another, score them, and write one table."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("recipe")
