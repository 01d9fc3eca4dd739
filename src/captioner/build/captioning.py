"""Training a captioner: what the runs of one configuration share, and what each has of its own."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captioner import config as schema
from captioner.build.attention import attention_views
from captioner.build.components import (
    build_generation,
    caption_frequencies,
    image_features,
    load_data,
    refuse_crop_without_map,
    refuse_uneven_grid,
    scene_metrics,
)
from captioner.build.cuda_graph import resident_captions
from captioner.build.initial import resumes
from captioner.build.memory import (
    require_disk,
    require_memory_for_captions,
    require_memory_for_images,
    require_memory_for_training,
)
from captioner.build.models import build_captioner
from captioner.build.replicas import order_seed, refuse_other_stages, refuse_shared_draws
from captioner.build.reward import reward_objective
from captioner.data.ahead import BatchesAhead
from captioner.data.dataset import BatchOrder, CaptionDataset, make_loader
from captioner.data.encoded import encode_splits
from captioner.data.resident import ResidentLoader
from captioner.data.sharding import BatchShard
from captioner.errors import ConfigError
from captioner.features.source import CachedFeatures, DecodedImages
from captioner.inference.captions import CaptionGenerator
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.word_layers import set_bias_from_counts
from captioner.profiling import span
from captioner.training.distributed import World
from captioner.training.scheduled_sampling import SamplingSchedule, ScheduledSampling
from captioner.training.setup import Order, Score
from captioner.training.step import Objective
from captioner.validation.captions import CaptionValidator
from captioner.validation.scores import CaptionScorer
from captioner.validation.scoring import Scoring

log = logging.getLogger(__name__)


class CaptionTask:
    """The `Task` of captioned images."""

    def __init__(self, config: schema.TrainConfig, device: torch.device, world: World) -> None:
        self.device, self.world = device, world
        with world.main_first():  # what is drawn or extracted is there for the others
            with span("captions read"):
                data = load_data(config.data)
                self.splits = {name: data.split(name) for name in ("train", "dev")}
            with span("encoder"):
                self.features = image_features(config.encoder, seed=config.seed, device=device)
                # A run that began before this was refused may be continued.
                if not resumes(config.run_dir, config.resume):
                    refuse_uneven_grid(self.features.encoder)
                refuse_crop_without_map(config.encoder, self.features)
            self._require_memory_for_images(config)
            views = {"train": config.encoder.views, "dev": ["original"]}
            self._require_disk(config, views)
            with span("image features"):
                sources = {
                    name: self.features.source(images, views=views[name])
                    for name, images in self.splits.items()
                }
            with span("vocabulary and captions encoded"):
                self.vocabulary, encoded = encode_splits(
                    self.splits,
                    min_count=config.vocabulary.min_count,
                    rare=config.vocabulary.rare,
                    max_length=config.vocabulary.max_length,
                    cache_dir=config.encoder.cache_dir,
                )
        self.datasets = {
            name: CaptionDataset(
                images,
                vocabulary=self.vocabulary,
                source=sources[name],
                max_length=config.vocabulary.max_length,
                by_image=name == "train" and config.trainer.batch_by == "picture",
                encoded=encoded[name],
            )
            for name, images in self.splits.items()
        }
        training = self.datasets["train"]
        self._order = partial(
            BatchOrder,
            len(training),
            batch_size=config.trainer.batch_size,
            views=len(config.encoder.views),
        )
        self._workers = config.trainer.workers
        order = self._order(seed=order_seed(config))
        self.data = resident_captions(config, training, order, device, world)
        self._batches: dict[int, tuple[BatchOrder, Iterable[Any]]] = {}
        images = self.splits["dev"]
        scorer = CaptionScorer(
            {image.name: image.captions for image in images},
            scene_metrics(images) if isinstance(config.data, schema.ScenesData) else None,
        )
        processes = min(config.trainer.replicas, torch.get_num_threads())
        self.score: Score | None = Scoring(scorer, config.trainer.scoring, processes=processes)

    def _require_memory_for_images(self, config: schema.TrainConfig) -> None:
        """ConfigError where a batch of images is too large, extracted or trained on."""
        if self.features.encoder is None:
            return
        batch = {"encoder.batch_size": config.encoder.batch_size}
        if self.features.trained and not self.features.split:
            # A batch of captions may show few images.
            by_image = config.trainer.batch_by == "picture"
            batch = {"trainer.batch_size": config.trainer.batch_size} if by_image else {}
        size, images = self.features.encoder.transform.size, len(self.splits["train"])
        require_memory_for_images(size, batch, self.device, images=images)

    def _require_disk(self, config: schema.TrainConfig, views: dict[str, list[str]]) -> None:
        """DataError where the disk is too small for what is to be cached; says how large it is."""
        if self.features.split:
            encoder = self.features.encoder
            assert encoder is not None
            log.info(
                "encoder: trained from %s on; what the stages before make of an image, %s numbers, "
                "is cached as %s",
                encoder.first_trained,
                " x ".join(map(str, encoder.frozen_shape)),
                self.features.cache_dtype,
            )
        needed = sum(
            self.features.bytes_to_extract(images, views[name])
            for name, images in self.splits.items()
        )
        if needed:
            require_disk(Path(config.encoder.cache_dir), needed)

    def batches(self, seed: int) -> tuple[Order, Iterable[Any]]:
        """See `Task`."""
        if seed not in self._batches:
            order = self._order(seed=seed)
            self._batches[seed] = order, self._loader(order)
        return self._batches[seed]

    def _loader(self, order: BatchOrder) -> Iterable[Any]:
        if self.data is not None:
            return ResidentLoader(self.data, order)
        training = self.datasets["train"]
        share: Any = training
        if self.world.size > 1:
            share = BatchShard(training, rank=self.world.rank, size=self.world.size)
        # Where every batch opens image files, worker processes can do it beside this one.
        opens_files = isinstance(training.source, DecodedImages) and not training.source.kept
        on_gpu = self.device.type == "cuda"
        workers = self._workers if opens_files else 0
        loader = make_loader(share, order, workers=workers, pin_memory=on_gpu)
        return BatchesAhead(loader, self.device) if on_gpu else loader

    def require_memory(self, config: schema.TrainConfig) -> None:
        """See `Task`."""
        training = self.datasets["train"]
        _, feature_dim = self.features.shape(training.source)
        lengths = training.tokens_per_row
        require_memory_for_training(
            config,
            self.device,
            vocab_size=len(self.vocabulary),
            feature_dim=feature_dim,
            tokens=int(lengths.double().mean() * min(config.trainer.batch_size, len(lengths))),
        )

    def new_model(self, config: schema.TrainConfig, *, replica: bool) -> BaseCaptioner:
        """A captioner initialised from the seed, output bias and feature scale set.

        An encoder that is trained is each replica's own.
        """
        features = self.features
        if replica and features.trained:
            features = image_features(config.encoder, seed=config.seed, device=self.device)
            refuse_shared_draws(features.encoder or nn.Identity())
            refuse_other_stages(features, self.features)
        source = self.datasets["train"].source
        regions, feature_dim = features.shape(source)
        torch.manual_seed(config.seed)
        model = build_captioner(
            config.model,
            vocab_size=len(self.vocabulary),
            feature_dim=feature_dim,
            regions=regions,
            encoder=features.encoder if features.trained else None,
            rnn=config.rnn,
        )
        if config.model.output_bias_from_counts:
            set_bias_from_counts(model.output_layer, self.vocabulary.counts)
        standardised = model.feature_norm == "standardise" and not features.trained
        if standardised and isinstance(source, CachedFeatures):
            model.set_feature_statistics(*source.statistics())
        return model

    def validator(
        self, config: schema.TrainConfig, model: BaseCaptioner, writer: Any
    ) -> CaptionValidator:
        """Measures the model on the dev split, whose first images `writer` shows."""
        images, dataset = self.splits["dev"], self.datasets["dev"]
        require_memory_for_captions(
            config.generation, self.device, vocab_size=len(self.vocabulary), images=len(images)
        )
        method = build_generation(
            config.generation,
            self.vocabulary,
            training_frequencies=lambda: caption_frequencies(self.splits["train"]),
        )
        generator = CaptionGenerator(model, self.vocabulary, method)
        return CaptionValidator(
            generator=generator,
            images=images,
            dataset=dataset,
            batch_size=config.generation.batch_size,
            writer=writer,
            shown=config.trainer.shown_pictures,
            world=self.world,
            attention=attention_views(
                generator,
                self.features,
                images,
                dataset.source,
                batch_size=config.generation.batch_size,
                scenes=isinstance(config.data, schema.ScenesData),
            ),
        )

    def objective(self, config: schema.TrainConfig, model: BaseCaptioner) -> Objective | None:
        """The reward of sentences drawn, or captions in which some of the words are drawn."""
        if config.trainer.objective == "reward":
            return reward_objective(config.reward, model, self.vocabulary, self.splits["train"])
        if config.trainer.scheduled_sampling == 0:
            return None
        schedule = SamplingSchedule(
            ceiling=config.trainer.scheduled_sampling,
            increase=config.trainer.scheduled_sampling_increase,
            start=config.trainer.scheduled_sampling_start,
        )
        special = (self.vocabulary.pad, self.vocabulary.bos, self.vocabulary.eos)
        order, _ = self.batches(order_seed(config))
        return ScheduledSampling(model, probability=lambda: schedule(order.epoch), banned=special)

    def at_epoch(
        self, config: schema.TrainConfig, model: BaseCaptioner
    ) -> Callable[[int], None] | None:
        """Gradual unfreezing, where that is asked for: of the encoder's stages that are trained one
        more, the last first. ConfigError where one would never be, or with several processes."""
        every, encoder = config.encoder.unfreeze_epochs, model.encoder
        if every is None or encoder is None:
            return None
        asked, first = f"encoder.unfreeze_epochs={every}", [x[0] for x in encoder.trained_stages]
        if (at := every * (len(first) - 1)) >= config.trainer.epochs:
            raise ConfigError(
                f"{asked} would train {first[0]} from epoch {at + 1} on, but trainer.epochs is "
                f"{config.trainer.epochs}"
            )
        if self.world.size > 1:
            raise ConfigError(
                f"{asked} needs one process, there are {self.world.size}: they add up gradients of "
                "the same weights at every step"
            )
        when = [f"{x} from epoch {1 + every * k}" for k, x in enumerate(reversed(first))]
        log.info("encoder: trained with all that follows: %s", ", ".join(when))
        return lambda epoch: encoder.train_last(1 + epoch // every)

    def texts(self, config: schema.TrainConfig, model: BaseCaptioner) -> dict[str, str]:
        """What `load_captioner` needs of the run besides the weights."""
        regions, feature_dim = self.features.shape(self.datasets["train"].source)
        identity = {**self.features.identity(), "feature_dim": feature_dim, "regions": regions}
        if self.features.split:
            identity["frozen_stages"] = self.features.fingerprint
        return {
            "config": json.dumps(dataclasses.asdict(config)),
            "vocabulary": self.vocabulary.to_json(),
            "encoder": json.dumps(identity),
        }
