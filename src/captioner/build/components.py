"""Configuration -> objects. Nothing behind this file reads a configuration."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from captioner import config as schema
from captioner.data.captions import CaptionData, CaptionedImage
from captioner.data.formats.coco import load_coco
from captioner.data.formats.flickr8k import load_flickr8k
from captioner.data.formats.folder import load_folder
from captioner.data.formats.karpathy import load_karpathy
from captioner.data.scenes.dataset import draw_scenes, load_scene_truth
from captioner.data.tokenize import coco_tokens
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.evaluation.attributes import attribute_percentages
from captioner.evaluation.cider import DocumentFrequencies
from captioner.evaluation.sentence_scores import Rarities, consensus
from captioner.features.source import ImageFeatures, choose_reader
from captioner.generation import (
    Constraints,
    SamplingParams,
    beam_search,
    by_consensus,
    greedy,
    sample,
)
from captioner.generation.hypothesis import state_device
from captioner.inference.captions import GenerationMethod
from captioner.models.encoder import Encoder
from captioner.models.encoders import make_encoder
from captioner.models.weights import load_weights
from captioner.training.checkpoint import Checkpoint
from captioner.training.distributed import own_gpu
from captioner.training.launch import started_together
from captioner.training.model_folder import ENCODER, open_checkpoint
from captioner.training.optimisation import Schedule, make_optimizer, parameter_groups
from captioner.training.setup import TrainerSettings
from captioner.validation.scores import ExtraMetrics

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """The device to run on; "auto" takes a GPU where there is one, ConfigError if it is absent.

    Of the processes that torchrun started on a machine each takes the GPU of its own number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name} asks for a GPU, and PyTorch sees none here; use device=cpu"
        )
    if name.startswith("cuda") and started_together() > 1:
        return own_gpu(name)
    return torch.device(name)


# -- data ---------------------------------------------------------------------------------------


def load_data(config: Any) -> CaptionData:
    """The captioned images of a data configuration; its notes are logged."""
    data = read_data(config)
    log.info("data: %s", data.summary())
    for note in data.notes:
        log.info("data: %s", note)
    return data


def read_data(config: Any) -> CaptionData:
    """The same, and nothing is logged."""
    if config.kind not in FORMATS:
        raise ConfigError(f"data must be one of {', '.join(schema.GROUPS['data'])}")
    settings = {key: value for key, value in vars(config).items() if key != "kind"}
    return FORMATS[config.kind](**settings)


def _load_karpathy(json: str, images: str, restval_in_train: bool) -> CaptionData:
    return load_karpathy(json, images, restval_in_train=restval_in_train)


def _load_coco(**paths: str | None) -> CaptionData:
    kinds = ("annotations", "images")
    splits = [x for x in schema.SPLITS if all(paths[f"{x}_{kind}"] is not None for kind in kinds)]
    annotations, images = ({x: str(paths[f"{x}_{kind}"]) for x in splits} for kind in kinds)
    return load_coco(annotations, images)


def _load_folder(
    captions: str, images: str, dev_fraction: float, test_fraction: float, seed: int
) -> CaptionData:
    train = 1 - (dev_fraction + test_fraction)
    fractions = {"dev": dev_fraction, "test": test_fraction, "train": train}
    return load_folder(captions, images, split_fractions=fractions, seed=seed)


# By data.kind: a function of the other keys of its schema.
FORMATS: Mapping[str, Callable[..., CaptionData]] = {
    "scenes": draw_scenes,
    "flickr8k": load_flickr8k,
    "karpathy": _load_karpathy,
    "coco": _load_coco,
    "folder": _load_folder,
}


def scene_metrics(images: Sequence[CaptionedImage]) -> ExtraMetrics:
    """Attribute accuracy (in percent) against the truth that lies beside drawn scenes."""
    return functools.partial(attribute_percentages, load_scene_truth(images[0].path.parent))


# -- encoder and features -----------------------------------------------------------------------


def build_encoder(
    config: schema.EncoderConfig, *, seed: int, weights: str | None = None
) -> Encoder:
    """The image encoder, frozen but for what `train_from` names; `weights` overrides the source.

    Random weights come from `seed` alone. CheckpointError where `init_from` holds no such encoder.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = make_encoder(
            config.kind,
            config.name,
            weights=weights or config.weights,
            output=config.output,
            grid_size=config.grid_size,
            size=config.size,
            resize=config.resize,
        )
    if config.init_from is not None and weights is None:
        load_weights(encoder, trained_encoder(config.init_from), source=config.init_from)
    if config.train_from is not None:
        encoder.freeze_before(config.train_from, batch_norm=str(config.batch_norm))
        encoder.crop = config.crop
    return encoder


def encoder_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The encoder's among a checkpoint's weights, in its own names."""
    model = checkpoint.model.items()
    return {name.removeprefix(ENCODER): x for name, x in model if name.startswith(ENCODER)}


def trained_encoder(path: str) -> dict[str, Tensor]:
    """The weights of the encoder that the captioner at `path` was trained with; CheckpointError
    where it had none of its own."""
    found = encoder_weights(open_checkpoint(path))
    if not found:
        raise CheckpointError(
            f"encoder.init_from={path} holds no encoder: its features were a frozen one's "
            "(encoder.train_from trains one)"
        )
    return found


def image_features(
    config: schema.EncoderConfig, *, seed: int, device: torch.device, weights: str | None = None
) -> ImageFeatures:
    """How images become features, from the encoder's configuration."""
    own = config.kind == "features"  # the user's
    return ImageFeatures(
        encoder=None if own else build_encoder(config, seed=seed, weights=weights),
        device=device,
        path=config.path,
        cache_dir=config.cache_dir,
        batch_size=config.batch_size,
        workers=config.workers,
        reader=choose_reader(config.reader, device),
        cache_dtype=str(config.cache_dtype),
        cached_stages=config.caches_stages,
    )


def refuse_uneven_grid(encoder: Encoder | None) -> None:
    """ConfigError where `grid_size` would average cells that overlap."""
    if encoder is None or encoder.grid_size is None:
        return
    if any(side % encoder.grid_size for side in encoder.grid):
        raise ConfigError(
            f"encoder.grid_size={encoder.grid_size} must divide both sides of the grid "
            f"{list(encoder.grid)} that {encoder.name} makes of an image of "
            f"{encoder.transform.size} x {encoder.transform.size} pixels; null keeps it whole"
        )


def refuse_crop_without_map(config: schema.EncoderConfig, features: ImageFeatures) -> None:
    """ConfigError where `crop` finds no map to crop."""
    if not config.crop:
        return
    if not features.split or features.encoder is None or len(features.encoder.frozen_shape) != 3:
        raise ConfigError(
            f"encoder.crop={config.crop} needs a cached map before encoder.train_from="
            f"{config.train_from}, and {config.name} has none there; take 0"
        )


# -- generation --------------------------------------------------------------------------------


def caption_frequencies(images: Sequence[CaptionedImage]) -> DocumentFrequencies:
    """How many of the images have each n-gram in a caption."""
    return DocumentFrequencies.of([[*map(coco_tokens, image.captions)] for image in images])


def _no_training_captions() -> DocumentFrequencies:
    raise DataError("generation.document_frequencies=train finds no training captions here")


def build_generation(
    config: schema.GenerationConfig,
    vocabulary: Vocabulary,
    *,
    training_frequencies: Callable[[], DocumentFrequencies] = _no_training_captions,
) -> GenerationMethod:
    """A method with all but the model filled in; `<pad>`, `<bos>` (and `<unk>`) are banned.

    `training_frequencies` counts the training captions, where the configuration asks for that.
    """
    if config.rerank == "none":
        return _search(config, vocabulary, n_best=config.n_best)
    search = _search(config, vocabulary, n_best=config.beam_size)
    rarities = _rarities(config.document_frequencies, vocabulary, training_frequencies)
    agreement = functools.partial(consensus, rarities=rarities)

    def rerank(step: Any, state: Any, *, batch_size: int) -> Any:
        found = search(step, state, batch_size=batch_size)
        return by_consensus(found, agreement, n_best=config.n_best)

    return rerank


def _rarities(
    source: str | None, vocabulary: Vocabulary, training: Callable[[], DocumentFrequencies]
) -> Rarities:
    """What n-grams of the vocabulary weigh in a consensus."""
    if source is None:
        return Rarities.equal()
    documents = training() if source == schema.OF_TRAINING else DocumentFrequencies.load(source)
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    return Rarities.of_documents(documents, numbers)


def _search(
    config: schema.GenerationConfig, vocabulary: Vocabulary, *, n_best: int
) -> GenerationMethod:
    """A method that gives so many captions, or all that it drew."""
    banned = [vocabulary.pad, vocabulary.bos]
    if not config.allow_unknown or vocabulary.rare == "drop":
        banned.append(vocabulary.unk)
    constraints = Constraints(
        bos=vocabulary.bos,
        eos=vocabulary.eos,
        min_length=config.min_length,
        max_length=config.max_length,
        length_penalty=config.length_penalty,
        banned=banned,
        no_repeat_ngram=config.no_repeat_ngram,
    )
    if config.method == "greedy":
        return functools.partial(greedy, constraints=constraints)
    if config.method == "beam":
        return functools.partial(
            beam_search,
            constraints=constraints,
            beam_size=config.beam_size,
            groups=config.groups,
            diversity=config.diversity if config.groups > 1 else 0.0,
            n_best=min(n_best, config.beam_size),
        )
    params = SamplingParams(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        typical_p=config.typical_p,
    )
    drawn = functools.partial(
        sample, constraints=constraints, samples=config.samples, params=params
    )

    def draw(step: Any, state: Any, *, batch_size: int) -> Any:
        generator = torch.Generator(device=state_device(state)).manual_seed(config.seed)
        return drawn(step, state, batch_size=batch_size, generator=generator)

    return draw


# -- training -----------------------------------------------------------------------------------


def build_optimizer(config: schema.TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters; the encoder may have a rate of its own."""
    settings = config.optimizer
    encoder, schedule = config.encoder, None
    if (encoder.schedule, encoder.warmup_steps) != (None, None):
        warmup = encoder.warmup_steps
        schedule = Schedule(
            schedule=encoder.schedule or settings.schedule,
            warmup_steps=settings.warmup_steps if warmup is None else warmup,
        )
    of_encoder = {"lr": encoder.lr, "decay": encoder.weight_decay, "schedule": schedule}
    by_prefix: dict[str, Any] = {
        f"{key}_by_prefix": {} if value is None else {"encoder.": value}
        for key, value in of_encoder.items()
    }
    groups = parameter_groups(
        model, lr=settings.lr, weight_decay=settings.weight_decay, **by_prefix
    )
    own: dict[str, dict[str, Any]] = {
        "adam": {"betas": tuple(settings.betas), "eps": settings.eps},
        "adamw": {"betas": tuple(settings.betas), "eps": settings.eps},
        "rmsprop": {"alpha": settings.alpha, "eps": settings.eps, "momentum": settings.momentum},
        "sgd": {"momentum": settings.momentum},
    }
    return make_optimizer(settings.name, groups, **own[settings.name])


def trainer_settings(config: schema.TrainConfig) -> TrainerSettings:
    """The plain settings of the loop: the groups `trainer` and `optimizer` have the same names."""
    given = {**vars(config.optimizer), **vars(config.trainer)}
    same = {f.name: given[f.name] for f in fields(TrainerSettings) if f.name in given}
    trainer = config.trainer
    tokens = trainer.batch_size * trainer.window * trainer.accumulation
    return TrainerSettings(
        **same,
        bf16=trainer.precision == "bf16",
        lower_is_better=trainer.best_metric in schema.TEXT_METRICS,
        rate_tokens=tokens if trainer.scale_lr_by_window else None,
    )
