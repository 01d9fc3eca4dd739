"""What evaluate.py does: dispatch by what is scored. Captions in files are scored without torch."""

from collections.abc import Mapping
from typing import Any

from captioner import config as schema
from captioner.commands.scoring import evaluate_files, evaluate_humans, format_scores, table_row


def evaluate(config: schema.EvaluateConfig) -> str:
    """Score a checkpoint, a results file or people, write the files; the scores as text."""
    name, scores = _scored(config)
    return f"{format_scores(scores)}\n{table_row(name, scores)}"


def _scored(config: schema.EvaluateConfig) -> tuple[str, Mapping[str, Any]]:
    """What was scored, in a few words, and its scores."""
    if config.human:
        return "people", evaluate_humans(config)
    if config.checkpoint is None:
        record = evaluate_files(config)
        return record.name, record.scores
    return _evaluate_model(config)


def _evaluate_model(config: schema.EvaluateConfig) -> tuple[str, Mapping[str, Any]]:
    """As the kind of the checkpoint, or of the first of several, demands."""
    from captioner.build.checkpoint import task_of
    from captioner.commands.evaluate_captions import evaluate_checkpoint
    from captioner.commands.evaluate_text import evaluate_text
    from captioner.training.model_folder import open_checkpoint

    if task_of(open_checkpoint(schema.checkpoint_paths(config.checkpoint)[0])) == "text":
        return evaluate_text(config)
    found = evaluate_checkpoint(config)
    return found.name, found.scores
