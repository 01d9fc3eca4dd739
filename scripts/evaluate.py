"""Score a checkpoint, captioner or language model, COCO-format results, or human captions."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("evaluate")
