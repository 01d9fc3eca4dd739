"""Score captions: of a checkpoint on a split, or of anybody's COCO-format results file."""

from __future__ import annotations

from pathlib import Path

from captioner.cli import run_command
from captioner.commands import evaluate_checkpoint
from captioner.config import EvaluateConfig
from captioner.evaluation.scores import score_files


def main(config: EvaluateConfig) -> None:
    """Print the figures; scores.json holds them with their protocol."""
    if config.checkpoint is not None:
        scores = evaluate_checkpoint(config).scores
    else:
        scores = score_files(
            results=str(config.results),
            references=str(config.references),
            out=config.out,
            brevity_penalty=config.brevity_penalty,
            subset=config.subset,
        )
    for name, value in scores.items():
        if isinstance(value, (int, float)):
            print(f"{name:20} {value}")


if __name__ == "__main__":
    run_command(main, name="evaluate", configs=Path(__file__).parents[1] / "configs")
