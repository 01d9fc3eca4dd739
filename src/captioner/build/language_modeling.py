"""A language model's run from its configuration, and the model from its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from captioner import config as schema
from captioner.build.backend import for_inference, validating_in_float32
from captioner.build.components import (
    build_language_model,
    build_optimizer,
    trainer_settings,
)
from captioner.build.cuda_graph import wants_graph
from captioner.build.replicas import order_seed
from captioner.data.dataset import make_loader
from captioner.data.text.codec import TextCodec
from captioner.data.text.corpus import TextCorpus, encode_corpus
from captioner.data.text.files import find_text, python_library, tiny_shakespeare
from captioner.data.text.windows import TextWindows, WindowOrder
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError
from captioner.models.language_model import LanguageModel, set_output_bias
from captioner.models.stream import StreamModel
from captioner.runs.folder import summary_writer, write_vocabulary
from captioner.runs.upgrade import upgrade
from captioner.training.checkpoint import Checkpoint, load_weights
from captioner.training.distributed import World
from captioner.training.model_folder import open_checkpoint
from captioner.training.randomness import OwnRandomness
from captioner.training.trainer import Trainer
from captioner.validation.text import TextValidator

log = logging.getLogger(__name__)


class TextParts:
    """What the runs of one configuration of text share: all but the model."""

    def __init__(self, config: schema.TrainConfig, device: torch.device, world: World) -> None:
        self.device, self.world = device, world
        wants_graph(config, device, "a text's windows carry a state from step to step")
        streams = world.share(config.trainer.batch_size)
        if config.trainer.batch_size < world.size:
            raise ConfigError(
                f"trainer.batch_size={config.trainer.batch_size} streams of text are not enough "
                f"for {world.size} processes: each reads one or more"
            )
        with world.main_first():  # what is downloaded and encoded is there for the others
            self.corpus = load_text(config.data, min_count=config.vocabulary.min_count)
        self.vocabulary = self.corpus.codec.vocabulary
        if world.main:
            write_vocabulary(Path(config.run_dir), self.vocabulary)
        log.info("vocabulary: %d tokens", len(self.vocabulary))
        windows = TextWindows(
            self.corpus.split("train").tokens,
            batch_size=config.trainer.batch_size,
            window=config.trainer.window,
            bos=self.vocabulary.bos,
            seed=order_seed(config),
            streams=streams,
        )
        self.order = WindowOrder(len(windows), epoch_windows=config.trainer.epoch_windows)
        self.loader = make_loader(windows, self.order, workers=0, pin_memory=device.type == "cuda")

    def trainer(self, config: schema.TrainConfig, *, replica: str = "") -> Trainer:
        """A new language model's trainer in `config.run_dir`; `replica` names one of several."""
        folder = Path(config.run_dir)
        model = StreamModel(_new_model(config, self.vocabulary)).to(self.device)
        random = OwnRandomness(self.device) if replica else None
        if not replica or replica == "replica 0":
            log.info("model: %s parameters", f"{sum(p.numel() for p in model.parameters()):,}")
        validator = text_validator(model.language_model, self.corpus, "dev")
        return Trainer(
            model=model,
            optimizer=build_optimizer(config, model),
            loader=self.loader,
            order=self.order,
            # The split is one stream, read from its first token to its last: by one process.
            validate=validating_in_float32(
                lambda step: self.world.from_main(lambda: validator(step)), model
            ),
            folder=folder,
            settings=trainer_settings(config),
            texts={
                "config": json.dumps(dataclasses.asdict(config)),
                "vocabulary": self.vocabulary.to_json(),
            },
            device=self.device,
            writer=summary_writer(folder) if self.world.main else None,
            show_progress=config.trainer.progress and not replica,
            random=random,
            name=replica,
            world=self.world,
        )


def load_text(
    config: schema.TextData,
    *,
    min_count: int,
    vocabulary: Vocabulary | None = None,
    whole: bool = False,
) -> TextCorpus:
    """The encoded text of a data configuration; `vocabulary` is a trained model's own.

    `whole` makes one split "all" of it.
    """
    shares: dict[str, Any] = {
        "dev_fraction": 0.0 if whole else config.dev_fraction,
        "test_fraction": 0.0 if whole else config.test_fraction,
        "seed": config.seed,
    }
    name = config.source
    if config.source == "python":
        splits = python_library(**shares)
    else:
        path: Any = config.path
        if config.source == "tiny_shakespeare":
            path = tiny_shakespeare(config.path, cache_dir=config.cache_dir)
        else:
            name = str(path)
        splits = find_text(
            path, pattern=config.pattern, whole_lines=config.unit == "word", **shares
        )
    if whole:
        splits = {"all": [document for documents in splits.values() for document in documents]}
    corpus = encode_corpus(
        splits,
        name=name,
        unit=config.unit,
        min_count=min_count,
        cache_dir=config.cache_dir,
        vocabulary=vocabulary,
    )
    log.info("data: %s", corpus.summary())
    return corpus


def text_validator(model: LanguageModel, corpus: TextCorpus, split: str) -> TextValidator:
    """What scores `model` on a split of the text."""
    codec = corpus.codec
    return TextValidator(
        model=model, stream=corpus.split(split), unit=codec.unit, bos=codec.vocabulary.bos
    )


def _new_model(config: schema.TrainConfig, vocabulary: Vocabulary) -> LanguageModel:
    """A language model at its start: initialised from the seed, its output bias set."""
    torch.manual_seed(config.seed)
    model = build_language_model(config.model, vocab_size=len(vocabulary), rnn=config.rnn)
    if config.model.output_bias_from_counts:
        set_output_bias(model, vocabulary.counts)
    return model


@dataclass(frozen=True)
class TrainedLanguageModel:
    """A checkpoint made usable: the model, its way between text and tokens, its data."""

    model: LanguageModel
    codec: TextCodec
    data: schema.TextData
    min_count: int


def is_language_model(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is of a model of text alone."""
    try:
        return bool(json.loads(checkpoint.texts["config"])["data"]["kind"] == "text")
    except (KeyError, TypeError, ValueError):
        return False


def load_language_model(
    path: Path | str, *, device: torch.device, checkpoint: Checkpoint | None = None
) -> TrainedLanguageModel:
    """Rebuild a trained language model from its checkpoint alone; CheckpointError if it is none.

    `path` is as `open_checkpoint` takes it; whoever has opened it gives what it holds.
    """
    if checkpoint is None:
        checkpoint = open_checkpoint(path)
    if not is_language_model(checkpoint):
        raise CheckpointError(f"{path} is no language model of text (a captioner, perhaps)")
    try:
        tree = upgrade(json.loads(checkpoint.texts["config"]))
        vocabulary = Vocabulary.from_json(checkpoint.texts["vocabulary"])
        decoder = for_inference(schema.ModelConfig(**tree["model"]))
        rnn = schema.RnnConfig(**tree["rnn"])
        data = schema.TextData(**tree["data"])
        min_count = int(tree["vocabulary"]["min_count"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a language model: {error!r}") from error
    model = StreamModel(build_language_model(decoder, vocab_size=len(vocabulary), rnn=rnn))
    load_weights(model, checkpoint.model, source=str(path))
    language_model = model.language_model.to(device).eval()
    return TrainedLanguageModel(language_model, TextCodec(data.unit, vocabulary), data, min_count)
