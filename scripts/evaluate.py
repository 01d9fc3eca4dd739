"""Score a checkpoint, captioner or language model, COCO-format results, or human captions."""

from __future__ import annotations

from captioner.commands.cli import run_command
from captioner.config import EvaluateConfig


def main(config: EvaluateConfig) -> str:
    """Score, and give the scores as text."""
    from captioner.commands.evaluate import evaluate

    return evaluate(config)


if __name__ == "__main__":
    run_command(main, __file__)
