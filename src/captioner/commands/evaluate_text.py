"""What evaluate.py does with language models of text."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner import config as schema
from captioner.build.checkpoint import TrainedLanguageModel, load_language_model
from captioner.build.components import pick_device
from captioner.build.language_modeling import load_text
from captioner.commands.scoring import checkpoint_card
from captioner.commands.trained import data_of
from captioner.data.text.codec import unit_name
from captioner.data.text.corpus import TextCorpus
from captioner.errors import ConfigError
from captioner.evaluation.metric import Metric, intervals
from captioner.files import write_json
from captioner.inspection.surprise import write_surprise_page
from captioner.progress import Progress
from captioner.training.model_folder import results_folder, weights_file
from captioner.validation.dynamic import DynamicEvaluation
from captioner.validation.text import Losses, TextScore, mean_probability, stream_losses
from captioner.version import __version__

log = logging.getLogger(__name__)
END = "\N{PILCROW SIGN}"  # shown where a document ends


def evaluate_text(config: schema.EvaluateConfig) -> tuple[str, dict[str, Any]]:
    """Score language models' checkpoints on a split of the first one's text, or of `data`: a name,
    the scores. Several are an ensemble, whose probabilities are averaged.

    The figures, with what they are averaged over, go into scores.json in `out`, by default a folder
    of the run named after the split; `page` gets the page of surprises.
    """
    given = schema.checkpoint_paths(config.checkpoint)
    paths = [weights_file(one) for one in given]
    members = _members(given, pick_device(config.device))
    corpus = _text(members[0], _data(config, members[0]), whole=config.split == "all")
    stream, codec = corpus.split(config.split), corpus.codec
    score = TextScore(stream, unit=codec.unit, bos=codec.vocabulary.bos)
    kept, left = [], 0 if config.page is None else config.page_tokens
    with Progress(len(stream.tokens) - 1, "text", units="tokens", scale=True) as bar:
        for targets, losses in _losses(config, members, stream.tokens):
            score.add(targets, losses)
            bar.update(len(targets))
            if left > 0:
                kept.append((targets[:left], losses[:left]))
                left -= len(targets)
    scores: dict[str, Any] = {k: round(v, 6) for k, v in score.figures().items()}
    documents, of_documents = score.per_document(), "none: the text is one document"
    if config.samples and len(documents) > 1:
        means = Metric("loss", _mean_loss(documents), documents, _mean_loss)
        bounds = intervals({"loss": means}, samples=config.samples)["loss"]
        scores["intervals"] = {"loss": [round(bound, 6) for bound in bounds]}
        of_documents = f"95 %, {config.samples} bootstrap samples of {len(documents)} documents"
    scores["protocol"] = {
        "data": corpus.name,
        "split": config.split,
        "averaged over": score.averaged_over(),
        "intervals": of_documents,
        "read as": "one stream, the state carried over to its end and reset where documents begin",
        "weights": _weights(config),
        "checkpoint": checkpoint_card(paths),
        "captioner": __version__,
        "torch": torch.__version__,
    }
    parts = [config.split, *([f"ensemble_of_{len(paths)}"] if len(paths) > 1 else [])]
    parts += ["dynamic"] if config.dynamic else []
    folder = Path(config.out or results_folder(given[0], "_".join(parts)))
    write_json(folder / "scores.json", scores)
    log.info("scores: %s, over %s", folder / "scores.json", score.averaged_over())
    if config.page is not None:
        count = sum(len(targets) for targets, _ in kept)
        write_surprise_page(
            config.page,
            title=f"What {paths[0].name} did not expect of {corpus.name}",
            tokens=_surprises(members[0], kept),
            facts={**scores, **scores["protocol"], "protocol": f"first {count} tokens"},
        )
        log.info("surprises: %s", config.page)
    return f"{paths[0].resolve().parent.name} {' '.join(parts)}", scores


def _members(given: Sequence[Path], device: torch.device) -> list[TrainedLanguageModel]:
    """The checkpoints' models; ConfigError where one reads other tokens than the first."""
    members = [load_language_model(path, device=device) for path in given]
    first = members[0]
    for path, member in zip(given, members, strict=True):
        unit = member.codec.unit
        if (unit, member.vocabulary.to_json()) != (first.codec.unit, first.vocabulary.to_json()):
            raise ConfigError(
                f"{path} has another vocabulary ({len(member.vocabulary)} {unit_name(unit)}s) than "
                f"{given[0]} ({len(first.vocabulary)} {unit_name(first.codec.unit)}s): an ensemble "
                "needs one and the same"
            )
    return members


def _losses(
    config: schema.EvaluateConfig, members: Sequence[TrainedLanguageModel], tokens: np.ndarray
) -> Losses:
    """The losses of a text's tokens, of all members together."""
    bos = members[0].vocabulary.bos
    of_one: Callable[..., Losses] = partial(stream_losses, bos=bos)
    if config.dynamic:
        own = members[0].data  # whose training text the gradients' scale is measured on
        training = _text(members[0], own, whole=False).split("train").tokens
        settings = config.dynamic_window, config.dynamic_lr, config.dynamic_decay
        of_one = partial(DynamicEvaluation(*settings).losses, training=training, bos=bos)
    return mean_probability([of_one(one.model, tokens) for one in members])


def _mean_loss(sums: np.ndarray) -> np.ndarray:
    """Nats a token of sums [..., 2] of nats and tokens."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


def _weights(config: schema.EvaluateConfig) -> str:
    """Whether the weights stay as they are, for the protocol."""
    if not config.dynamic:
        return "fixed"
    return (
        f"dynamic evaluation (Krause et al. 2018), after every {config.dynamic_window} tokens, "
        f"learning rate {config.dynamic_lr:g}, decay {config.dynamic_decay:g}"
    )


def _text(trained: TrainedLanguageModel, data: schema.TextData, *, whole: bool) -> TextCorpus:
    """A text in the model's own tokens."""
    return load_text(data, min_count=trained.min_count, vocabulary=trained.vocabulary, whole=whole)


def _data(config: schema.EvaluateConfig, trained: TrainedLanguageModel) -> schema.TextData:
    """The text to score, read in the model's own unit."""
    data = data_of(trained.data, config.data)
    if not isinstance(data, schema.TextData):
        raise ConfigError(
            f"{config.checkpoint} is a language model of text; data must be text too, got "
            f"data.kind={data.kind}"
        )
    return dataclasses.replace(data, unit=trained.codec.unit)


def _surprises(
    trained: TrainedLanguageModel, losses: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[str, float]]:
    """Each token's text with its loss in nats, from the second token on."""
    bos = trained.vocabulary.bos
    for targets, found in losses:
        ids = targets.tolist()
        for number, text, loss in zip(ids, trained.codec.shown(ids), found.tolist(), strict=True):
            yield (f"{END}\n" if number == bos else text), loss
