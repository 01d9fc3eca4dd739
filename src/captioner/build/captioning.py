"""The pieces put together: a run from its configuration, a captioner from its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner import config as schema
from captioner.build.backend import for_inference, validating_in_float32
from captioner.build.components import (
    begin_run,
    build_captioner,
    build_generation,
    build_optimizer,
    image_features,
    load_data,
    scene_metrics,
    trainer_settings,
)
from captioner.build.cuda_graph import resident_captions
from captioner.build.language_modeling import TextParts, is_language_model
from captioner.build.replicas import (
    Parts,
    order_seed,
    refuse_shared_draws,
    train_side_by_side,
)
from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset, ImageSource, make_loader
from captioner.data.resident import PlannedLoader
from captioner.data.sharding import BatchShard
from captioner.data.tokenize import tokenize
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError
from captioner.features.source import CachedFeatures, DecodedImages, ImageFeatures
from captioner.inference.captions import CaptionGenerator
from captioner.models.captioner import Captioner
from captioner.models.language_model import set_output_bias
from captioner.runs.folder import summary_writer, write_vocabulary
from captioner.runs.upgrade import upgrade
from captioner.training.checkpoint import Checkpoint, load_weights
from captioner.training.distributed import World
from captioner.training.model_folder import ENCODER, open_checkpoint
from captioner.training.randomness import OwnRandomness
from captioner.training.replicas import ReplicaTrainer
from captioner.training.trainer import Trainer
from captioner.validation.captions import CaptionValidator

log = logging.getLogger(__name__)


def build_trainer(config: schema.TrainConfig) -> Trainer | ReplicaTrainer:
    """Everything of a training run, wired and, where the folder holds a run to resume, resumed."""
    device, world = begin_run(config)
    text = isinstance(config.data, schema.TextData)
    make: Callable[..., Parts] = TextParts if text else CaptionParts
    parts = make(config, device, world)
    trainer = (
        parts.trainer(config)
        if config.trainer.replicas == 1
        else train_side_by_side(config, parts, device, world)
    )
    if config.resume:
        trainer.resume()
    return trainer


class CaptionParts:
    """What the runs of one configuration of captioned pictures share: all but the model."""

    def __init__(self, config: schema.TrainConfig, device: torch.device, world: World) -> None:
        self.device, self.world = device, world
        with world.main_first():  # what is drawn or extracted is there for the others
            data = load_data(config.data)
            self.splits = {name: data.split(name) for name in ("train", "dev")}
            self.features = image_features(config.encoder, seed=config.seed, device=device)
            sources = {name: self.features.source(images) for name, images in self.splits.items()}
        self.vocabulary = _build_vocabulary(config.vocabulary, self.splits["train"])
        if world.main:
            write_vocabulary(Path(config.run_dir), self.vocabulary)
        self.datasets = {
            name: CaptionDataset(
                images,
                vocabulary=self.vocabulary,
                source=sources[name],
                max_length=config.vocabulary.max_length,
                by_picture=name == "train" and config.trainer.batch_by == "picture",
            )
            for name, images in self.splits.items()
        }
        training = self.datasets["train"]
        self.order = BatchOrder(
            len(training), batch_size=config.trainer.batch_size, seed=order_seed(config)
        )
        share: Any = training
        if world.size > 1:
            share = BatchShard(training, rank=world.rank, size=world.size)
        self.resident = resident_captions(config, training, self.order, device, world)
        self.loader: Iterable[Any] = (
            PlannedLoader(self.resident)
            if self.resident is not None
            else make_loader(
                share,
                self.order,
                workers=config.trainer.workers if _reads_files(training.source) else 0,
                pin_memory=device.type == "cuda",
            )
        )

    def trainer(self, config: schema.TrainConfig, *, replica: str = "") -> Trainer:
        """A new captioner's trainer in `config.run_dir`; `replica` names one among several."""
        features = self._features(config, replica)
        source = self.datasets["train"].source
        model = _new_captioner(config, self.vocabulary, features, source).to(self.device)
        random = OwnRandomness(self.device) if replica else None
        if not replica or replica == "replica 0":
            log.info("model: %s parameters", f"{sum(p.numel() for p in model.parameters()):,}")
        folder = Path(config.run_dir)
        writer = summary_writer(folder) if self.world.main else None
        return Trainer(
            model=model,
            optimizer=build_optimizer(config, model),
            loader=self.loader,
            order=self.order,
            validate=validating_in_float32(self._validator(config, model, writer), model),
            folder=folder,
            settings=trainer_settings(config),
            texts=_checkpoint_texts(dataclasses.asdict(config), self.vocabulary, features, model),
            device=self.device,
            writer=writer,
            show_progress=config.trainer.progress and not replica,
            random=random,
            name=replica,
            world=self.world,
            data=self.resident,
        )

    def _validator(
        self, config: schema.TrainConfig, model: Captioner, writer: Any
    ) -> CaptionValidator:
        images, dataset = self.splits["dev"], self.datasets["dev"]
        decoder = build_generation(config.generation, self.vocabulary)
        return CaptionValidator(
            generator=CaptionGenerator(model, self.vocabulary, decoder),
            images=images,
            dataset=dataset,
            source=dataset.source,
            batch_size=config.generation.batch_size,
            extra=scene_metrics(images) if isinstance(config.data, schema.ScenesData) else None,
            writer=writer,
            shown=config.trainer.shown_pictures,
            world=self.world,
        )

    def _features(self, config: schema.TrainConfig, replica: str) -> ImageFeatures:
        """The images' way in: an encoder that is trained is each replica's own."""
        if not (replica and self.features.trained):
            return self.features
        own = image_features(config.encoder, seed=config.seed, device=self.device)
        refuse_shared_draws(own.encoder or nn.Identity())
        return own


def _reads_files(source: ImageSource) -> bool:
    """Whether every batch means opening pictures, which processes beside this one can do."""
    return isinstance(source, DecodedImages) and not source.kept


def _build_vocabulary(
    config: schema.VocabularyConfig, images: Sequence[CaptionedImage]
) -> Vocabulary:
    """The vocabulary of the training captions."""
    vocabulary = Vocabulary.build(
        (tokenize(caption) for image in images for caption in image.captions),
        min_count=config.min_count,
        rare=config.rare,
    )
    log.info("vocabulary: %d tokens", len(vocabulary))
    return vocabulary


def _checkpoint_texts(
    resolved: dict[str, Any], vocabulary: Vocabulary, features: ImageFeatures, model: Captioner
) -> dict[str, str]:
    """What `load_captioner` needs of the run besides the weights."""
    feature_dim = model.image_projection.in_features
    return {
        "config": json.dumps(resolved),
        "vocabulary": vocabulary.to_json(),
        "encoder": json.dumps({**features.identity(), "feature_dim": feature_dim}),
    }


def _new_captioner(
    config: schema.TrainConfig,
    vocabulary: Vocabulary,
    features: ImageFeatures,
    source: ImageSource,
) -> Captioner:
    """A captioner at its start: initialised from the seed, output bias and feature scale set."""
    torch.manual_seed(config.seed)
    model = build_captioner(
        config.model,
        vocab_size=len(vocabulary),
        feature_dim=features.feature_dim(source),
        encoder=features.encoder if features.trained else None,
        rnn=config.rnn,
    )
    if config.model.output_bias_from_counts:
        set_output_bias(model.language_model, vocabulary.counts)
    if model.feature_norm == "standardise" and isinstance(source, CachedFeatures):
        model.set_feature_statistics(*source.statistics())
    return model


@dataclass(frozen=True)
class TrainedCaptioner:
    """A checkpoint made usable: the model, its vocabulary, its images' way in, its data."""

    model: Captioner
    vocabulary: Vocabulary
    features: ImageFeatures
    data: Any
    checkpoint: Checkpoint

    def generator(self, config: schema.GenerationConfig) -> CaptionGenerator:
        """A generator of captions with the decoder that `config` describes."""
        return CaptionGenerator(
            self.model, self.vocabulary, build_generation(config, self.vocabulary)
        )


def load_captioner(
    path: Path | str, *, device: torch.device, checkpoint: Checkpoint | None = None
) -> TrainedCaptioner:
    """Rebuild a trained captioner from its checkpoint alone, or from a folder that holds one.

    Whoever has opened `path` gives what it holds. Raises CheckpointError when a file is damaged, or
    when the frozen encoder that it was trained on is neither in it nor the one that this machine
    has (other weights or another transform).
    """
    if checkpoint is None:
        checkpoint = open_checkpoint(path)
    if is_language_model(checkpoint):
        raise CheckpointError(f"{path} is a language model of text: it captions no pictures")
    try:
        tree = upgrade(json.loads(checkpoint.texts["config"]))
        vocabulary = Vocabulary.from_json(checkpoint.texts["vocabulary"])
        identity = json.loads(checkpoint.texts["encoder"])
        # What auto chose there, whatever it would choose here.
        reader = {"reader": identity.get("reader", "pil")}
        encoder_config = schema.EncoderConfig(**{**tree["encoder"], **reader})
        model_config = for_inference(schema.ModelConfig(**tree["model"]))
        rnn_config = schema.RnnConfig(**tree.get("rnn", {}))  # none in version 0.1.0
        data = schema.data_config(tree["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a captioner: {error!r}") from error
    trained = identity["kind"] == "trained"
    carried = {} if trained else _encoder_weights(checkpoint)
    features = image_features(
        encoder_config,
        seed=tree["seed"],
        device=device,
        weights="random" if trained or carried else None,
    )
    if carried and features.encoder is not None:
        load_weights(features.encoder, carried, source=f"{path}, encoder")
    here = features.identity()
    if any(identity[key] != value for key, value in here.items()):
        raise CheckpointError(
            f"{path} was trained on the features of another encoder: it names "
            f"{_describe(identity)}, here is {_describe(here)}"
        )
    model = build_captioner(
        model_config,
        vocab_size=len(vocabulary),
        feature_dim=identity["feature_dim"],
        encoder=features.encoder if trained else None,
        rnn=rnn_config,
    )
    own = {k: x for k, x in checkpoint.model.items() if trained or not k.startswith(ENCODER)}
    load_weights(model, own, source=str(path))
    return TrainedCaptioner(model.to(device).eval(), vocabulary, features, data, checkpoint)


def _encoder_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The frozen encoder's tensors, where a model folder includes them."""
    tensors = checkpoint.model.items()
    return {k.removeprefix(ENCODER): x for k, x in tensors if k.startswith(ENCODER)}


def _describe(identity: dict[str, Any]) -> str:
    fingerprint = identity.get("fingerprint", "")[:12]
    return f"{identity['kind']} {identity.get('name', '')} {fingerprint}".strip()
