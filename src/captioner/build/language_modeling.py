"""Training a language model on text: what its runs share, and what each has of its own."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from captioner import config as schema
from captioner.build.cuda_graph import wants_graph
from captioner.build.memory import require_memory_for_training
from captioner.build.models import build_language_model
from captioner.build.replicas import order_seed
from captioner.data.dataset import make_loader
from captioner.data.resident import ResidentCaptions
from captioner.data.text.corpus import TextCorpus, encode_corpus
from captioner.data.text.files import find_text, python_library, tiny_shakespeare
from captioner.data.text.windows import TextWindows, WindowOrder
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.models.language_model import LanguageModel, set_output_bias
from captioner.models.stream import StreamModel
from captioner.training.distributed import World
from captioner.training.setup import Order, Score
from captioner.validation.text import TextValidator

log = logging.getLogger(__name__)


class TextTask:
    """The `Task` of text, read as streams."""

    data: ResidentCaptions | None = None
    score: Score | None = None  # the validator's figures are the scores

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
            self.corpus = load_text(
                config.data,
                min_count=config.vocabulary.min_count,
                size=config.vocabulary.size,
            )
        self.vocabulary = self.corpus.codec.vocabulary
        self.streams = len(streams)
        self._windows = partial(
            TextWindows,
            self.corpus.split("train").tokens,
            batch_size=config.trainer.batch_size,
            window=config.trainer.window,
            bos=self.vocabulary.bos,
            streams=streams,
            random=config.trainer.random_windows,
        )
        self._epoch_windows = config.trainer.epoch_windows
        self._batches: dict[int, tuple[Order, Iterable[Any]]] = {}
        self.batches(order_seed(config))  # refuses a text that is too short

    def batches(self, seed: int) -> tuple[Order, Iterable[Any]]:
        """See `Task`."""
        if seed not in self._batches:
            windows = self._windows(seed=seed)
            order = WindowOrder(len(windows), epoch_windows=self._epoch_windows)
            on_gpu = self.device.type == "cuda"
            loader = make_loader(windows, order, workers=0, pin_memory=on_gpu)
            self._batches[seed] = order, loader
        return self._batches[seed]

    def require_memory(self, config: schema.TrainConfig) -> None:
        """See `Task`."""
        require_memory_for_training(
            config,
            self.device,
            vocab_size=len(self.vocabulary),
            tokens=self.streams * config.trainer.window,
        )

    def new_model(self, config: schema.TrainConfig, *, replica: bool) -> StreamModel:
        """A language model initialised from the seed, its output bias set."""
        torch.manual_seed(config.seed)
        model = build_language_model(config.model, vocab_size=len(self.vocabulary), rnn=config.rnn)
        if config.model.output_bias_from_counts:
            set_output_bias(model, self.vocabulary.counts)
        return StreamModel(model)

    def validator(
        self, config: schema.TrainConfig, model: StreamModel, writer: Any
    ) -> Callable[[int], dict[str, float]]:
        """Scores the model on the dev split."""
        validator = text_validator(model.language_model, self.corpus, "dev")
        # The split is one stream, read from its first token to its last: by one process.
        return lambda step: self.world.from_main(lambda: validator(step))

    def texts(self, config: schema.TrainConfig, model: StreamModel) -> dict[str, str]:
        """What `load_language_model` needs of the run besides the weights."""
        return {
            "config": json.dumps(dataclasses.asdict(config)),
            "vocabulary": self.vocabulary.to_json(),
        }

    def objective(self, config: schema.TrainConfig, model: StreamModel) -> None:
        """The cross-entropy of the windows."""

    def at_epoch(self, config: schema.TrainConfig, model: StreamModel) -> None:
        """Every epoch is the same."""


def load_text(
    config: schema.TextData,
    *,
    min_count: int,
    size: int | None = None,
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
    path: Any = config.path
    if config.source == "python":
        splits = python_library(**shares)
    else:
        if config.source == "tiny_shakespeare":
            path = tiny_shakespeare(path, cache_dir=config.cache_dir)
        else:
            name = str(path)
        whole_lines = config.unit == "word"
        splits = find_text(path, pattern=config.pattern, whole_lines=whole_lines, **shares)
    if whole:
        splits = {"all": [document for documents in splits.values() for document in documents]}
    corpus = encode_corpus(
        splits,
        name=name,
        unit=config.unit,
        min_count=min_count,
        size=size,
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
