"""Trained models from their checkpoints: captioners and language models of text."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from captioner import config as schema
from captioner.build.backend import for_inference
from captioner.build.components import build_generation, image_features
from captioner.build.memory import require_memory_for_captions
from captioner.build.models import build_captioner, build_language_model
from captioner.data.text.codec import TextCodec
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError
from captioner.features.source import ImageFeatures
from captioner.inference.captions import CaptionGenerator
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.language_model import LanguageModel
from captioner.models.stream import StreamModel
from captioner.runs.upgrade import upgrade
from captioner.training.checkpoint import Checkpoint, load_weights
from captioner.training.model_folder import ENCODER, open_checkpoint


@dataclass(frozen=True)
class TrainedCaptioner:
    """A captioner made usable: the model, its vocabulary, its images' features, its data."""

    task: ClassVar = "captions"
    model: BaseCaptioner
    vocabulary: Vocabulary
    features: ImageFeatures
    data: Any
    checkpoint: Checkpoint

    def generator(self, config: schema.GenerationConfig, *, images: int = 1) -> CaptionGenerator:
        """A generator of captions by the method that `config` describes; ConfigError where too
        little memory is free for a batch of so many `images`."""
        device = next(self.model.parameters()).device
        require_memory_for_captions(config, device, vocab_size=len(self.vocabulary), images=images)
        return CaptionGenerator(
            self.model, self.vocabulary, build_generation(config, self.vocabulary)
        )

    def describe(self) -> list[str]:
        """Its data, its encoder, the size of its vocabulary and its score, in a few words each."""
        encoder = self.features.encoder
        return [
            f"trained on {self.data.kind}",
            *([] if encoder is None else [encoder.name]),
            f"{len(self.vocabulary):,} words",
            *_score(self.checkpoint, "BLEU-4", "{:.1f} BLEU-4 on dev"),
        ]


@dataclass(frozen=True)
class TrainedLanguageModel:
    """A language model made usable: the model, its codec between text and tokens, its data."""

    task: ClassVar = "text"
    model: LanguageModel
    codec: TextCodec
    data: schema.TextData
    min_count: int
    checkpoint: Checkpoint

    @property
    def vocabulary(self) -> Vocabulary:
        """Its characters, bytes or words."""
        return self.codec.vocabulary

    def describe(self) -> list[str]:
        """The sizes of its vocabulary and of itself and its score, in a few words each."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        unit = self.codec.unit
        return [
            f"{len(self.vocabulary):,} {unit}s",
            f"{size / 1e6:.1f} million weights",
            *_score(self.checkpoint, "loss", f"{{:.3f}} nats a {unit} on dev"),
        ]


def _score(checkpoint: Checkpoint, metric: str, text: str) -> list[str]:
    return [text.format(checkpoint.scores[metric])] if metric in checkpoint.scores else []


Trained = TrainedCaptioner | TrainedLanguageModel


def task_of_data(kind: str) -> str:
    """What a model of such data does: "text" or, of every other kind, "captions"."""
    return "text" if kind == "text" else "captions"


def task_of(checkpoint: Checkpoint) -> str:
    """What a checkpoint's model does, by the kind of data that it was trained on."""
    try:
        return task_of_data(json.loads(checkpoint.texts["config"])["data"]["kind"])
    except (KeyError, TypeError, ValueError):
        return "captions"


def load_trained(
    path: Path | str, *, device: torch.device, checkpoint: Checkpoint | None = None
) -> Trained:
    """Rebuild a trained model from its checkpoint alone; `path` as `open_checkpoint` takes it.

    Whoever has opened `path` gives what it holds. Raises CheckpointError when a file is damaged, or
    when the frozen encoder that a captioner was trained on is neither in it nor the one that this
    machine has (other weights or another transform).
    """
    checkpoint = checkpoint or open_checkpoint(path)
    return TASKS[task_of(checkpoint)](str(path), checkpoint, device)


def load_captioner(
    path: Path | str, *, device: torch.device, checkpoint: Checkpoint | None = None
) -> TrainedCaptioner:
    """`load_trained`, and CheckpointError where it is no captioner."""
    checkpoint = checkpoint or open_checkpoint(path)
    if task_of(checkpoint) != "captions":
        raise CheckpointError(f"{path} is a language model of text: it captions no images")
    return _captioner(str(path), checkpoint, device)


def load_language_model(path: Path | str, *, device: torch.device) -> TrainedLanguageModel:
    """`load_trained`, and CheckpointError where it is no language model of text."""
    checkpoint = open_checkpoint(path)
    if task_of(checkpoint) != "text":
        raise CheckpointError(f"{path} is no language model of text (a captioner, perhaps)")
    return _language_model(str(path), checkpoint, device)


def _captioner(path: str, checkpoint: Checkpoint, device: torch.device) -> TrainedCaptioner:
    try:
        tree = upgrade(json.loads(checkpoint.texts["config"]))
        vocabulary = Vocabulary.from_json(checkpoint.texts["vocabulary"])
        identity = json.loads(checkpoint.texts["encoder"])
        # What auto chose there, whatever it would choose here.
        reader = {"reader": identity.get("reader", "pil")}
        before = {"cache_dtype": "float32"}  # what was not a setting once
        encoder_config = schema.EncoderConfig(**{**before, **tree["encoder"], **reader})
        model_config = for_inference(schema.model_config(tree["model"]))
        rnn_config = schema.RnnConfig(**tree.get("rnn", {}))  # none in version 0.1.0
        data = schema.data_config(tree["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a captioner: {error!r}") from error
    trained = identity["kind"] == "trained"
    inside = {k: x for k, x in checkpoint.model.items() if k.startswith(ENCODER)}
    frozen = {} if trained else {k.removeprefix(ENCODER): x for k, x in inside.items()}
    features = image_features(
        encoder_config,
        seed=tree["seed"],
        device=device,
        weights="random" if trained or frozen else None,
    )
    if frozen and features.encoder is not None:
        load_weights(features.encoder, frozen, source=f"{path}, encoder")
    here = features.identity()
    if any(identity[key] != value for key, value in here.items()):
        raise CheckpointError(
            f"{path} was trained on the features of another encoder: it names "
            f"{_encoder_name(identity)}, here is {_encoder_name(here)}"
        )
    if "regions" in identity:  # not in those of version 0.1
        shape = (identity["regions"], identity["feature_dim"])
        features = replace(features, expected_shape=shape)
    model = build_captioner(
        model_config,
        vocab_size=len(vocabulary),
        feature_dim=identity["feature_dim"],
        regions=identity.get("regions"),  # not in those of version 0.1
        encoder=features.encoder if trained else None,
        rnn=rnn_config,
    )
    own = {k: x for k, x in checkpoint.model.items() if trained or k not in inside}
    load_weights(model, own, source=path)
    return TrainedCaptioner(model.to(device).eval(), vocabulary, features, data, checkpoint)


def _encoder_name(identity: dict[str, Any]) -> str:
    fingerprint = identity.get("fingerprint", "")[:12]
    return f"{identity['kind']} {identity.get('name', '')} {fingerprint}".strip()


def _language_model(
    path: str, checkpoint: Checkpoint, device: torch.device
) -> TrainedLanguageModel:
    try:
        tree = upgrade(json.loads(checkpoint.texts["config"]))
        vocabulary = Vocabulary.from_json(checkpoint.texts["vocabulary"])
        model_config = for_inference(schema.model_config(tree["model"]))
        rnn = schema.RnnConfig(**tree["rnn"])
        data = schema.TextData(**tree["data"])
        min_count = int(tree["vocabulary"]["min_count"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a language model: {error!r}") from error
    model = StreamModel(build_language_model(model_config, vocab_size=len(vocabulary), rnn=rnn))
    load_weights(model, checkpoint.model, source=path)
    language_model = model.language_model.to(device).eval()
    codec = TextCodec(data.unit, vocabulary)
    return TrainedLanguageModel(language_model, codec, data, min_count, checkpoint)


TASKS: dict[str, Callable[[str, Checkpoint, torch.device], Trained]] = {
    "captions": _captioner,
    "text": _language_model,
}
