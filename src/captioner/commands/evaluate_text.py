"""What evaluate.py does with a language model of text."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from captioner import config as schema
from captioner.build.checkpoint import TrainedLanguageModel, load_language_model
from captioner.build.components import pick_device
from captioner.build.language_modeling import load_text, text_validator
from captioner.commands.scoring import checkpoint_card
from captioner.commands.trained import data_of
from captioner.errors import ConfigError
from captioner.files import write_json
from captioner.inspection.surprise import write_surprise_page
from captioner.training.model_folder import results_folder, weights_file
from captioner.validation.text import stream_losses
from captioner.version import __version__

log = logging.getLogger(__name__)
END = "\N{PILCROW SIGN}"  # shown where a document ends


def evaluate_text(config: schema.EvaluateConfig) -> tuple[str, dict[str, Any]]:
    """Score a language model's checkpoint on a split of its text, or of `data`: a name, the scores.

    The figures, with what they are averaged over, go into scores.json in `out`, by default a folder
    of the run named after the split; `page` gets the page of surprises.
    """
    given, *others = schema.checkpoint_paths(config.checkpoint)
    if others:
        raise ConfigError(
            f"{given} is a language model of text, which is scored alone: an ensemble of several "
            "checkpoints is for captioners"
        )
    path = weights_file(given)
    trained = load_language_model(given, device=pick_device(config.device))
    corpus = load_text(
        _data(config, trained),
        min_count=trained.min_count,
        vocabulary=trained.vocabulary,
        whole=config.split == "all",
    )
    validator = text_validator(trained.model, corpus, config.split)
    scores: dict[str, Any] = {k: round(v, 6) for k, v in validator(0).items()}
    scores["protocol"] = {
        "data": corpus.name,
        "split": config.split,
        "averaged over": validator.averaged_over(),
        "read as": "one stream, the state carried over to its end and reset where documents begin",
        "checkpoint": checkpoint_card([path]),
        "captioner": __version__,
        "torch": torch.__version__,
    }
    folder = Path(config.out or results_folder(given, config.split))
    write_json(folder / "scores.json", scores)
    log.info("scores: %s, over %s", folder / "scores.json", validator.averaged_over())
    if config.page is not None:
        tokens = corpus.split(config.split).tokens[: config.page_tokens + 1]
        write_surprise_page(
            config.page,
            title=f"What {path.name} did not expect of {corpus.name}",
            tokens=_surprises(trained, tokens),
            facts={**scores, **scores["protocol"], "protocol": f"first {len(tokens) - 1} tokens"},
        )
        log.info("surprises: %s", config.page)
    return f"{path.resolve().parent.name} {config.split}", scores


def _data(config: schema.EvaluateConfig, trained: TrainedLanguageModel) -> schema.TextData:
    """The text to score, read in the model's own unit."""
    data = data_of(trained.data, config.data)
    if not isinstance(data, schema.TextData):
        raise ConfigError(
            f"{config.checkpoint} is a language model of text; data must be text too, got "
            f"data.kind={data.kind}"
        )
    return dataclasses.replace(data, unit=trained.codec.unit)


def _surprises(trained: TrainedLanguageModel, tokens: Any) -> Iterator[tuple[str, float]]:
    """Each token's text with its loss in nats, from the second token on."""
    bos = trained.vocabulary.bos
    for targets, losses in stream_losses(trained.model, tokens, bos=bos):
        ids = targets.tolist()
        for number, text, loss in zip(ids, trained.codec.pieces(ids), losses.tolist(), strict=True):
            yield (f"{END}\n" if number == bos else text), loss
