"""Score a checkpoint, captioner or language model, or anybody's COCO-format results file."""

from __future__ import annotations

from pathlib import Path

from captioner.cli import run_command
from captioner.commands import evaluate_checkpoint
from captioner.config import EvaluateConfig
from captioner.evaluation.scores import score_files
from captioner.text_commands import evaluate_text
from captioner.text_runs import is_language_model
from captioner.training.checkpoint import load_checkpoint


def main(config: EvaluateConfig) -> None:
    """Print the figures; scores.json holds them with their protocol."""
    if config.checkpoint is not None and is_language_model(load_checkpoint(config.checkpoint)):
        scores = evaluate_text(config)
    elif config.checkpoint is not None:
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
