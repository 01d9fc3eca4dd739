"""Score a checkpoint, captioner or language model, anybody's COCO-format results, or people."""

from __future__ import annotations

from pathlib import Path

from captioner.build.checkpoint import task_of
from captioner.commands.cli import run_command
from captioner.commands.evaluate import evaluate_checkpoint
from captioner.commands.scoring import evaluate_files, evaluate_humans, format_scores
from captioner.commands.text import evaluate_text
from captioner.config import EvaluateConfig, checkpoint_paths
from captioner.training.model_folder import open_checkpoint

EVALUATE = {
    "captions": lambda config: evaluate_checkpoint(config).scores,
    "text": evaluate_text,
}


def main(config: EvaluateConfig) -> None:
    """Print the figures; the files hold them with their protocol."""
    if config.human:
        scores = evaluate_humans(config)
    elif config.checkpoint is not None:
        first = open_checkpoint(checkpoint_paths(config.checkpoint)[0])
        scores = EVALUATE[task_of(first)](config)
    else:
        scores = dict(evaluate_files(config).scores)
    print(format_scores(scores))


if __name__ == "__main__":
    run_command(main, name="evaluate", configs=Path(__file__).parents[1] / "configs")
