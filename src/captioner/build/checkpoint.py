"""Trained models from their checkpoints: captioners and language models of text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from captioner import config as schema
from captioner.build.backend import for_inference
from captioner.build.components import (
    build_generation,
    caption_frequencies,
    encoder_weights,
    image_features,
    read_data,
)
from captioner.build.memory import require_memory_for_captions
from captioner.build.models import build_captioner, build_language_model
from captioner.data.text.codec import TextCodec, unit_name
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.evaluation.cider import DocumentFrequencies
from captioner.features.source import ImageFeatures
from captioner.files import parse_json
from captioner.inference.captions import CaptionGenerator
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.language_model import LanguageModel
from captioner.models.stream import StreamModel
from captioner.restore import Json, Size, restore
from captioner.runs.upgrade import upgrade
from captioner.training.checkpoint import Checkpoint, check_weights, load_weights
from captioner.training.model_folder import ENCODER, FREQUENCIES, open_checkpoint

Model = TypeVar("Model", bound=nn.Module)


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
        method = build_generation(
            config, self.vocabulary, training_frequencies=lambda: self.training_frequencies
        )
        return CaptionGenerator(self.model, self.vocabulary, method)

    @cached_property
    def training_frequencies(self) -> DocumentFrequencies:
        """Of the captions that it was trained on, as they came with it or counted; DataError where
        these are not at their place."""
        counted = self.checkpoint.texts.get("document_frequencies")
        if counted is not None:
            return DocumentFrequencies.from_json(counted, FREQUENCIES)
        try:
            return caption_frequencies(read_data(self.data).splits["train"])
        except DataError as error:
            raise DataError(
                "generation.document_frequencies=train counts the captions that the model was "
                f"trained on, and they are not here: {error}; name a saved table instead, or where "
                "they are export it with include_frequencies=true"
            ) from error

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
        """Its characters, bytes, byte pairs or words."""
        return self.codec.vocabulary

    def describe(self) -> list[str]:
        """The sizes of its vocabulary and of itself and its score, in a few words each."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        unit = unit_name(self.codec.unit)
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
        return task_of_data(stored_config(checkpoint)["data"]["kind"])
    except (CheckpointError, KeyError, TypeError):  # loading it will say what is wrong
        return "captions"


def stored_config(checkpoint: Checkpoint, source: str = "the checkpoint") -> dict[str, Any]:
    """The configuration that a checkpoint carries, in today's names; CheckpointError names
    `source`."""
    return upgrade(_stored(dict[str, Json], checkpoint, "config", source))


class _Identity(TypedDict):
    kind: Literal["frozen", "trained", "features"]
    feature_dim: Size


class EncoderIdentity(_Identity, total=False):
    """What a captioner's features are of. `name` and `fingerprint` are an encoder's;
    `frozen_stages` that of a trained one's frozen stages, where their output was cached. Version
    0.1 kept no `regions`, and Pillow's reader is not named."""

    name: str
    fingerprint: str
    frozen_stages: str
    reader: str
    regions: Size


def stored_identity(checkpoint: Checkpoint, source: str = "the checkpoint") -> EncoderIdentity:
    """The encoder that a captioner's checkpoint carries; CheckpointError names `source`."""
    identity: EncoderIdentity = _stored(EncoderIdentity, checkpoint, "encoder", source)
    return identity


def _stored(kind: Any, checkpoint: Checkpoint, name: str, source: str) -> Any:
    if name not in checkpoint.texts:
        raise CheckpointError(f"{source} holds no {name}")
    place = f"{source}: {name}"
    with _wrong_checkpoint():
        return restore(kind, parse_json(checkpoint.texts[name], place, file_names=True), place)


@contextmanager
def _wrong_checkpoint() -> Iterator[None]:
    """What is wrong of a part of a checkpoint becomes an error of the checkpoint."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise CheckpointError(str(error)) from error


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


class _Settings(TypedDict):
    model: dict[str, Json]
    data: dict[str, Json]


class _CaptionerSettings(_Settings):
    seed: int
    encoder: dict[str, Json]


class _LanguageModelSettings(_Settings):
    rnn: schema.RnnConfig
    vocabulary: schema.VocabularyConfig


def _captioner(path: str, checkpoint: Checkpoint, device: torch.device) -> TrainedCaptioner:
    place = f"{path}: config"
    tree: Any = stored_config(checkpoint, path)
    identity: Any = stored_identity(checkpoint, path)
    vocabulary = stored_vocabulary(checkpoint, path)
    with _wrong_checkpoint():
        restore(_CaptionerSettings, tree, place)
        # What auto chose there, whatever it would choose here.
        reader = {"reader": identity.get("reader", "pil")}
        # What was not a setting once.
        before = {"cache_dtype": "float32", "frozen_stages": "computed"}
        encoder_config: schema.EncoderConfig = restore(
            schema.EncoderConfig, {**before, **tree["encoder"], **reader}, f"{place}: encoder"
        )
        model_config = for_inference(schema.model_config(tree["model"], f"{place}: model"))
        rnn_config = restore(schema.RnnConfig, tree.get("rnn", {}), f"{place}: rnn")  # not in 0.1.0
        data = schema.data_config(tree["data"], f"{place}: data")
    trained = identity["kind"] == "trained"
    frozen = {} if trained else encoder_weights(checkpoint)
    features = image_features(
        encoder_config,
        seed=tree["seed"],
        device=device,
        weights="random" if trained or frozen else None,
    )
    if frozen and features.encoder is not None:
        load_weights(features.encoder, frozen, source=f"{path}, encoder")
    here = features.identity()
    if any(identity.get(key) != value for key, value in here.items()):
        raise CheckpointError(
            f"{path} was trained on the features of another encoder: it names "
            f"{_encoder_name(identity)}, here is {_encoder_name(here)}"
        )
    if "regions" in identity:  # not in those of version 0.1
        shape = (identity["regions"], identity["feature_dim"])
        features = replace(features, expected_shape=shape)
    own = {k: x for k, x in checkpoint.model.items() if trained or not k.startswith(ENCODER)}
    model = _with_weights(
        lambda: build_captioner(
            model_config,
            vocab_size=len(vocabulary),
            feature_dim=identity["feature_dim"],
            regions=identity.get("regions"),  # not in those of version 0.1
            encoder=features.encoder if trained else None,
            rnn=rnn_config,
        ),
        own,
        layers=model_config.num_layers,
        source=path,
    )
    return TrainedCaptioner(model.to(device).eval(), vocabulary, features, data, checkpoint)


def stored_vocabulary(checkpoint: Checkpoint, path: str) -> Vocabulary:
    """The words that a checkpoint carries; CheckpointError names `path`."""
    if "vocabulary" not in checkpoint.texts:
        raise CheckpointError(f"{path} holds no vocabulary")
    with _wrong_checkpoint():
        return Vocabulary.from_json(checkpoint.texts["vocabulary"], f"{path}: vocabulary")


def _with_weights(
    build: Callable[[], Model], weights: dict[str, torch.Tensor], *, layers: int, source: str
) -> Model:
    """The model that `build` makes, with `weights`; that they fit is known before any memory is
    taken, or any time: sizes are what the configuration says, whatever that is."""
    if layers > len(weights):
        raise CheckpointError(
            f"{source}: config: num_layers is {layers:,}, but there are {len(weights)} tensors"
        )
    try:
        with torch.device("meta"), _NotDrawn():
            empty = build()
    except RuntimeError as error:  # a size that no tensor can have
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{source} does not fit this model: {reason}") from error
    check_weights(empty, weights, source=source)
    model = build()
    load_weights(model, weights, source=source)
    return model


class _NotDrawn(TorchFunctionMode):
    """Random numbers are not drawn: on the meta device there are none, and to say so torch imports
    torch._dynamo, which takes seconds."""

    DRAWN = (
        *(torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_),
        *(nn.init.xavier_uniform_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
        *(nn.init.xavier_normal_, nn.init.trunc_normal_, nn.init.orthogonal_),
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWN:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _encoder_name(identity: dict[str, Any]) -> str:
    fingerprint = identity.get("fingerprint", "")[:12]
    return f"{identity['kind']} {identity.get('name', '')} {fingerprint}".strip()


def _language_model(
    path: str, checkpoint: Checkpoint, device: torch.device
) -> TrainedLanguageModel:
    place = f"{path}: config"
    tree = stored_config(checkpoint, path)
    vocabulary = stored_vocabulary(checkpoint, path)
    with _wrong_checkpoint():
        settings: _LanguageModelSettings = restore(_LanguageModelSettings, tree, place)
        model_config = for_inference(schema.model_config(tree["model"], f"{place}: model"))
        data: schema.TextData = restore(schema.TextData, tree["data"], f"{place}: data")
        codec = TextCodec(data.unit, vocabulary)
    model = _with_weights(
        lambda: StreamModel(
            build_language_model(model_config, vocab_size=len(vocabulary), rnn=settings["rnn"])
        ),
        checkpoint.model,
        layers=model_config.num_layers,
        source=path,
    )
    language_model = model.language_model.to(device).eval()
    min_count = settings["vocabulary"].min_count
    return TrainedLanguageModel(language_model, codec, data, min_count, checkpoint)


TASKS: dict[str, Callable[[str, Checkpoint, torch.device], Trained]] = {
    "captions": _captioner,
    "text": _language_model,
}
