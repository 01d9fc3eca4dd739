"""Configuration -> objects. Nothing behind this file reads a configuration."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from captioner import config as schema
from captioner.data.captions import CaptionData, CaptionedImage
from captioner.data.coco import load_coco
from captioner.data.dataset import (
    BatchOrder,
    CaptionDataset,
    ImageSource,
    make_loader,
)
from captioner.data.flickr8k import load_flickr8k
from captioner.data.folder import load_folder
from captioner.data.karpathy import load_karpathy
from captioner.data.scenes import draw_scenes, load_scene_truth
from captioner.data.tokenize import tokenize
from captioner.data.vocabulary import Vocabulary
from captioner.decoding import beam_search, greedy, sample
from captioner.errors import CheckpointError, ConfigError
from captioner.evaluation.attributes import attribute_accuracy
from captioner.files import atomic_write
from captioner.generation import CaptionGenerator, Decoder
from captioner.image_features import CachedFeatures, ImageFeatures
from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder
from captioner.models.language_model import LanguageModel, initialise, set_output_bias
from captioner.models.plain_encoder import plain_encoder
from captioner.models.timm_encoder import efficientnet_lite, timm_encoder
from captioner.models.torchvision_encoder import torchvision_encoder
from captioner.ops import choose_backend
from captioner.run_folder import claim_run_folder
from captioner.training.checkpoint import Checkpoint, load_checkpoint, load_weights
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.trainer import Trainer, TrainerSettings
from captioner.validation import CaptionValidator, ExtraMetrics

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """The device to run on; "auto" takes a GPU where there is one, ConfigError if it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name} asks for a GPU, and PyTorch sees none here; use device=cpu"
        )
    return torch.device(name)


# -- data ---------------------------------------------------------------------------------------


def load_data(config: Any) -> CaptionData:
    """The captioned pictures of a data configuration, their notes said aloud."""
    if isinstance(config, schema.ScenesData):
        data = draw_scenes(
            config.root,
            train=config.train,
            dev=config.dev,
            test=config.test,
            size=config.size,
            seed=config.seed,
        )
    elif isinstance(config, schema.Flickr8kData):
        data = load_flickr8k(config.root, layout=config.layout)
    elif isinstance(config, schema.KarpathyData):
        data = load_karpathy(config.json, config.images, restval_in_train=config.restval_in_train)
    elif isinstance(config, schema.CocoData):
        data = _load_coco(config)
    elif isinstance(config, schema.FolderData):
        fractions = {"dev": config.dev_fraction, "test": config.test_fraction}
        fractions["train"] = 1 - sum(fractions.values())
        data = load_folder(
            config.captions, config.images, split_fractions=fractions, seed=config.seed
        )
    else:
        raise ConfigError(f"data must be one of {', '.join(schema.GROUPS['data'])}")
    log.info("data: %s", data.summary())
    for note in data.notes:
        log.info("data: %s", note)
    return data


def _load_coco(config: schema.CocoData) -> CaptionData:
    annotations = {"train": config.train_annotations, "dev": config.dev_annotations}
    images = {"train": config.train_images, "dev": config.dev_images}
    if config.test_annotations is not None and config.test_images is not None:
        annotations["test"], images["test"] = config.test_annotations, config.test_images
    return load_coco(annotations, images)


def scene_metrics(images: Sequence[CaptionedImage]) -> ExtraMetrics:
    """Attribute accuracy (in percent) against the truth that lies beside drawn scenes."""
    truth = load_scene_truth(images[0].path.parent)

    def metrics(captions: dict[str, str]) -> dict[str, float]:
        figures = attribute_accuracy(truth, captions)
        return {
            "attribute_accuracy": 100 * figures["accuracy"],
            "all_attributes": 100 * figures["all_slots"],
        }

    return metrics


# -- encoder and features -----------------------------------------------------------------------


def build_encoder(
    config: schema.EncoderConfig, *, seed: int, weights: str | None = None
) -> Encoder:
    """The picture network, frozen but for what `train_from` names; `weights` overrides the source.

    Random weights come from `seed` alone.
    """
    kinds = {
        "torchvision": torchvision_encoder,
        "timm": timm_encoder,
        "efficientnet_lite": efficientnet_lite,
        "plain": plain_encoder,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = kinds[config.kind](
            config.name,
            weights=weights or config.weights,
            output=config.output,
            grid_size=config.grid_size,
            size=config.size,
            resize=config.resize,
        )
    if config.train_from is not None:
        encoder.freeze_before(config.train_from)
    return encoder


def image_features(
    config: schema.EncoderConfig, *, seed: int, device: torch.device, weights: str | None = None
) -> ImageFeatures:
    """The images' way into the model, from its configuration."""
    return ImageFeatures(
        encoder=None
        if config.kind == "features"
        else build_encoder(config, seed=seed, weights=weights),
        device=device,
        path=config.path,
        cache_dir=config.cache_dir,
        batch_size=config.batch_size,
        workers=config.workers,
    )


# -- model and decoder --------------------------------------------------------------------------


def build_captioner(
    config: schema.DecoderConfig,
    *,
    vocab_size: int,
    feature_dim: int,
    encoder: Encoder | None = None,
) -> Captioner:
    """The captioner with its own layers initialised as the configuration says."""
    language_model = LanguageModel(
        vocab_size=vocab_size,
        embedding_dim=config.embedding_dim,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        input_dropout=config.input_dropout,
        output_dropout=config.output_dropout,
        layer_dropout=config.layer_dropout,
        tie_embeddings=config.tie_embeddings,
        backend=config.backend,
    )
    model = Captioner(
        language_model=language_model,
        feature_dim=feature_dim,
        feature_norm=config.feature_norm,
        feature_dropout=config.feature_dropout,
        encoder=encoder,
    )
    for part in (model.image_projection, language_model):
        initialise(
            part, scheme=config.init, scale=config.init_scale, forget_bias=config.forget_bias
        )
    return model


def build_decoder(config: schema.DecodeConfig, vocabulary: Vocabulary) -> Decoder:
    """A decoder with all but the model filled in; `<pad>`, `<bos>` (and `<unk>`) are banned."""
    banned = [vocabulary.pad, vocabulary.bos]
    if not config.allow_unknown or vocabulary.rare == "drop":
        banned.append(vocabulary.unk)
    common: dict[str, Any] = {
        "bos": vocabulary.bos,
        "eos": vocabulary.eos,
        "min_length": config.min_length,
        "max_length": config.max_length,
        "length_penalty": config.length_penalty,
        "banned": banned,
        "no_repeat_ngram": config.no_repeat_ngram,
    }
    if config.method == "greedy":
        return functools.partial(greedy, **common)
    if config.method == "beam":
        return functools.partial(
            beam_search,
            beam_size=config.beam_size,
            groups=config.groups,
            diversity=config.diversity if config.groups > 1 else 0.0,
            n_best=min(config.n_best, config.beam_size),
            **common,
        )

    def draw(step: Any, state: Any, *, batch_size: int) -> Any:
        generator = torch.Generator(device=state[0].device).manual_seed(config.seed)
        return sample(
            step,
            state,
            batch_size=batch_size,
            samples=config.samples,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            generator=generator,
            **common,
        )

    return draw


# -- training -----------------------------------------------------------------------------------


def build_trainer(config: schema.TrainConfig) -> Trainer:
    """Everything of a training run, wired and, where the folder holds a run to resume, resumed."""
    folder = Path(config.run_dir)
    resolved = dataclasses.asdict(config)
    claim_run_folder(folder, resolved, resume=config.resume)
    device = pick_device(config.device)
    log.info("LSTM backend: %s on %s", choose_backend(config.decoder.backend, device.type), device)

    data = load_data(config.data)
    splits = {name: data.split(name) for name in ("train", "dev")}
    vocabulary = Vocabulary.build(
        (tokenize(caption) for image in splits["train"] for caption in image.captions),
        min_count=config.vocabulary.min_count,
        rare=config.vocabulary.rare,
    )
    with atomic_write(folder / "vocabulary.json", "w") as handle:
        handle.write(vocabulary.to_json())
    log.info("vocabulary: %d tokens", len(vocabulary))

    features = image_features(config.encoder, seed=config.seed, device=device)
    sources = {name: features.source(images) for name, images in splits.items()}
    datasets = {
        name: CaptionDataset(
            images,
            vocabulary=vocabulary,
            source=sources[name],
            max_length=config.vocabulary.max_length,
            by_picture=name == "train" and config.trainer.batch_by == "picture",
        )
        for name, images in splits.items()
    }
    model = _new_captioner(config, vocabulary, features, sources["train"]).to(device)
    log.info("model: %s parameters", f"{sum(p.numel() for p in model.parameters()):,}")

    writer = _summary_writer(folder)
    validator = CaptionValidator(
        generator=CaptionGenerator(model, vocabulary, build_decoder(config.decode, vocabulary)),
        images=splits["dev"],
        dataset=datasets["dev"],
        source=sources["dev"],
        batch_size=config.decode.batch_size,
        extra=scene_metrics(splits["dev"]) if isinstance(config.data, schema.ScenesData) else None,
        writer=writer,
        shown=config.trainer.shown_pictures,
    )
    order = BatchOrder(
        len(datasets["train"]), batch_size=config.trainer.batch_size, seed=config.seed
    )
    trainer = Trainer(
        model=model,
        optimizer=_optimizer(config, model),
        loader=make_loader(
            datasets["train"],
            order,
            workers=config.trainer.workers if features.trained else 0,
            pin_memory=device.type == "cuda",
        ),
        order=order,
        validate=validator,
        folder=folder,
        settings=_trainer_settings(config),
        texts={
            "config": json.dumps(resolved),
            "vocabulary": vocabulary.to_json(),
            "encoder": json.dumps(
                {**features.identity(), "feature_dim": model.image_projection.in_features}
            ),
        },
        device=device,
        writer=writer,
        show_progress=config.trainer.progress,
    )
    if config.resume:
        trainer.resume()
    return trainer


def _new_captioner(
    config: schema.TrainConfig,
    vocabulary: Vocabulary,
    features: ImageFeatures,
    source: ImageSource,
) -> Captioner:
    """A captioner at its start: initialised from the seed, output bias and feature scale set."""
    torch.manual_seed(config.seed)
    model = build_captioner(
        config.decoder,
        vocab_size=len(vocabulary),
        feature_dim=features.feature_dim(source),
        encoder=features.encoder if features.trained else None,
    )
    if config.decoder.output_bias_from_counts:
        set_output_bias(model.language_model, vocabulary.counts)
    if config.decoder.feature_norm == "standardise" and isinstance(source, CachedFeatures):
        model.set_feature_statistics(*source.statistics())
    return model


def _optimizer(config: schema.TrainConfig, model: Captioner) -> torch.optim.Optimizer:
    settings = config.optimizer
    groups = parameter_groups(
        model,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        lr_by_prefix={"encoder.": config.encoder.lr} if config.encoder.lr is not None else {},
    )
    own: dict[str, dict[str, Any]] = {
        "adam": {"betas": tuple(settings.betas), "eps": settings.eps},
        "adamw": {"betas": tuple(settings.betas), "eps": settings.eps},
        "rmsprop": {"alpha": settings.alpha, "eps": settings.eps, "momentum": settings.momentum},
        "sgd": {"momentum": settings.momentum},
    }
    return make_optimizer(settings.name, groups, **own[settings.name])


def _trainer_settings(config: schema.TrainConfig) -> TrainerSettings:
    return TrainerSettings(
        epochs=config.trainer.epochs,
        accumulation=config.trainer.accumulation,
        label_smoothing=config.trainer.label_smoothing,
        clip_norm=config.optimizer.clip_norm,
        clip_value=config.optimizer.clip_value,
        schedule=config.optimizer.schedule,
        warmup_steps=config.optimizer.warmup_steps,
        bf16=config.trainer.precision == "bf16",
        best_metric=config.trainer.best_metric,
        lower_is_better=config.trainer.best_metric == "perplexity",
        patience=config.trainer.patience,
        checkpoint_minutes=config.trainer.checkpoint_minutes,
        checkpoint_steps=config.trainer.checkpoint_steps,
        log_steps=config.trainer.log_steps,
    )


def _summary_writer(folder: Path) -> Any:
    # Imported late: it takes seconds, and only a training run needs it.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


# -- a trained captioner ------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedCaptioner:
    """A checkpoint made usable: the model, its vocabulary, its images' way in, its data."""

    model: Captioner
    vocabulary: Vocabulary
    features: ImageFeatures
    data: Any
    checkpoint: Checkpoint

    def generator(self, config: schema.DecodeConfig) -> CaptionGenerator:
        """A generator of captions with the decoder that `config` describes."""
        return CaptionGenerator(self.model, self.vocabulary, build_decoder(config, self.vocabulary))


def load_captioner(path: Path | str, *, device: torch.device) -> TrainedCaptioner:
    """Rebuild a trained captioner from its checkpoint alone.

    Raises CheckpointError when the file is damaged, or when the frozen encoder that it was trained
    on is not the one that this machine has (other weights or another transform).
    """
    checkpoint = load_checkpoint(path)
    try:
        tree = json.loads(checkpoint.texts["config"])
        vocabulary = Vocabulary.from_json(checkpoint.texts["vocabulary"])
        identity = json.loads(checkpoint.texts["encoder"])
        encoder_config = schema.EncoderConfig(**tree["encoder"])
        decoder_config = schema.DecoderConfig(**tree["decoder"])
        data = schema.data_config(tree["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a captioner: {error!r}") from error
    trained = identity["kind"] == "trained"
    features = image_features(
        encoder_config, seed=tree["seed"], device=device, weights="random" if trained else None
    )
    here = features.identity()
    if any(identity[key] != value for key, value in here.items()):
        raise CheckpointError(
            f"{path} was trained on the features of another encoder: it names "
            f"{_describe(identity)}, here is {_describe(here)}"
        )
    model = build_captioner(
        decoder_config,
        vocab_size=len(vocabulary),
        feature_dim=identity["feature_dim"],
        encoder=features.encoder if trained else None,
    )
    load_weights(model, checkpoint.model, source=str(path))
    return TrainedCaptioner(model.to(device).eval(), vocabulary, features, data, checkpoint)


def _describe(identity: dict[str, Any]) -> str:
    fingerprint = identity.get("fingerprint", "")[:12]
    return f"{identity['kind']} {identity.get('name', '')} {fingerprint}".strip()
