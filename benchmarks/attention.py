"""suite=attention: models that attend to a grid, beside the pooled model, the products of keys and
values alone, and plain loops with feedback; then beam search.

Every implementation has a process of its own and takes the same captions: batches of whole images,
five captions each. Models and their training are those of the experiments, but for the average of
the weights, and on a GPU without CUDA graphs. Grids are drawn and lie in a file in half precision,
as in the cache.

Shapes: n images, I images a batch, R regions, F image feature, H hidden (= E = A, the attention).
"""

import itertools
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.beam import VOCABULARY_FROM
from benchmarks.captions import Workload
from benchmarks.epoch import WARM_UP, take_in_turn
from benchmarks.plain_attention import PlainAttention, doubly_stochastic_loss
from benchmarks.plain_loop import Loss
from benchmarks.roofline import Gemms
from benchmarks.settings import AttentionBenchmark
from benchmarks.suite import Axes, Run, SuiteResult
from benchmarks.timing import Spread, in_turn, paired_ratio
from benchmarks.training import EagerSteps, PlainSteps, Steps, StepSettings, TimedSteps, Training
from benchmarks.worker import ROOT, Worker
from captioner.build.components import build_generation
from captioner.build.models import build_captioner
from captioner.commands.cli import compose_config
from captioner.config import ShowAttendTellConfig, TrainConfig
from captioner.inference.captions import Caption, CaptionGenerator
from captioner.models.base_captioner import BaseCaptioner
from captioner.training.memory import keep_freed_memory

# By name: the experiment, and what differs from it.
MODELS: dict[str, tuple[str, ...]] = {
    "layered_attention lstm": ("attention_flickr8k", "model.join=lstm"),
    "layered_attention concat": ("attention_flickr8k", "model.join=concat"),
    "adaptive_attention": ("adaptive_attention_flickr8k",),
    "show_attend_tell": ("show_attend_tell_flickr8k",),
    "up_down": ("up_down_flickr8k",),
}
POOLED, PRODUCTS = "pooled nic_flickr8k", "products of keys and values"
PLAIN, KEYS_ONCE = "plain PyTorch", "plain PyTorch, keys once"
LAYERED = "layered_attention"
EXPERIMENTS = {
    **MODELS,
    POOLED: ("nic_flickr8k",),
    PRODUCTS: MODELS[f"{LAYERED} concat"],
    PLAIN: MODELS["show_attend_tell"],
    KEYS_ONCE: MODELS["show_attend_tell"],
}
# Asked of the layered models' step; of beam search, in images a second; of a process, in bytes.
TO_POOLED, TO_PLAIN, RATE, MEMORY_LIMIT = 1.5, 3.0, 150.0, 3e9
# Steps of the search for every image, none ends before: a layered_attention model that had reached
# 21 BLEU-4 searched for 15.1 on average (100 images, beam of 5, length penalty 0.5).
SEARCHED = 15


def attention_suite(settings: AttentionBenchmark, run: Run) -> SuiteResult:
    """Training steps taken in turn, the peak memory they left, and captions made in turn."""
    data = "drawn captions" if run.data_root is None else "flickr8k's captions"
    described = {"searched_steps": SEARCHED, "data": data, "seed": run.seed}
    result = SuiteResult({**vars(settings), **described})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        grids = draw_grids(Path(folder), settings, run.seed)
        names = [*settings.models, POOLED, PRODUCTS, PLAIN, KEYS_ONCE]
        workers = {name: _start(stack, name, settings, run, grids) for name in names}
        taken = take_in_turn(workers, steps=settings.steps, repeats=run.repeats)
        _add_steps(result, settings, taken)
        if run.device.type == "cpu":
            peaks = {name: worker.call("result")[1] for name, worker in workers.items()}
            _add_memory(result, settings, peaks)
        names = [*settings.models, POOLED]
        captioned = {name: partial(workers[name].call, "caption_seconds") for name in names}
        found = in_turn(captioned, repeats=run.repeats)
    for name, spread in found.items():
        rate, axes = spread.map(lambda seconds: settings.images / seconds), _axes(name)
        result.add("beam search of 5", name, "images/s", rate)
        if name in settings.models:
            result.require("beam search of 5", "images/s", rate, at_least=RATE, axes=axes)
    return result


def _axes(name: str) -> Axes:
    return {"model": name}


def _add_steps(result: SuiteResult, settings: AttentionBenchmark, taken: dict[str, Spread]) -> None:
    """Times of a step, and how the layered models' compare."""
    for name, spread in taken.items():
        result.add("a step", name, "ms", spread.map(lambda seconds: 1e3 * seconds))
    pairs = zip(taken[POOLED].values, taken[PRODUCTS].values, strict=True)
    both = Spread(tuple(a + b for a, b in pairs))
    for name in settings.models:
        to_pooled = paired_ratio(taken[name], both)
        to_plain = {plain: paired_ratio(taken[plain], taken[name]) for plain in (PLAIN, KEYS_ONCE)}
        result.add(f"time to {POOLED} and {PRODUCTS}", name, "times", to_pooled)
        for plain, speed in to_plain.items():
            result.add(f"speed to {plain}", name, "times", speed)
        if name.startswith(LAYERED):
            axes, what = _axes(name), f"step to {POOLED} and {PRODUCTS}"
            result.require(what, "times", to_pooled, at_most=TO_POOLED, axes=axes)
            what = f"speed to {PLAIN} with feedback"
            result.require(what, "times", to_plain[PLAIN], at_least=TO_PLAIN, axes=axes)


def _add_memory(result: SuiteResult, settings: AttentionBenchmark, peaks: dict[str, int]) -> None:
    for name, peak in peaks.items():
        result.add("peak memory of the process, training", name, "MB", peak / 1e6)
        if name in settings.models:
            most, axes = MEMORY_LIMIT / 1e6, _axes(name)
            result.require("peak memory, training", "MB", peak / 1e6, at_most=most, axes=axes)


def draw_grids(folder: Path, settings: AttentionBenchmark, seed: int) -> str:
    """The path of drawn features [n, R, F] in half precision, mean 0 and deviation 1."""
    path, shape = str(folder / "grids.npy"), (settings.regions, settings.feature_dim)
    generator = np.random.default_rng([seed, 4])
    whole = (settings.images, *shape)
    kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=whole)
    for row in range(settings.images):
        kept[row] = generator.standard_normal(shape, np.float32)
    kept.flush()
    return path


@dataclass(frozen=True, kw_only=True)
class AttentionTraining(Training):
    """The training of an experiment's model, on a CPU in memory that is kept as in a run."""

    config: TrainConfig

    def model(self, backend: str) -> BaseCaptioner:
        """The model in training, with its first weights, drawn from the seed."""
        store, config = self.data.store, replace(self.config.model, backend=backend)
        with torch.random.fork_rng():
            torch.manual_seed(self.workload.seed)
            model = build_captioner(
                config,
                vocab_size=self.data.vocab_size,
                feature_dim=store.feature_dim,
                regions=store.regions,
            )
        return model.to(self.device).train()

    def build(self, name: str) -> Steps:
        """PLAIN, KEYS_ONCE, PRODUCTS, or a model."""
        if name in (PLAIN, KEYS_ONCE):
            return PlainAttentionSteps(self, keys_once=name == KEYS_ONCE)
        if name == PRODUCTS:
            return ProductSteps(self)
        if self.device.type == "cpu":
            keep_freed_memory()
        return EagerSteps(self, "auto")


def attention_training(
    name: str, settings: AttentionBenchmark, run: Run, grids: str, *more: str
) -> AttentionTraining:
    """The training of an implementation; `more` are overrides of its configuration."""
    experiment, *own = EXPERIMENTS[name]
    size = settings.hidden_size
    sizes = ["model.hidden_size", "model.embedding_dim"]
    sizes += [] if name == POOLED else ["model.attention_dim"]
    overrides = [f"experiment={experiment}", "data.root=none", *own, *more]
    config: TrainConfig = compose_config(
        "train", [*overrides, *(f"{key}={size}" for key in sizes)], configs=ROOT / "configs"
    )
    workload = Workload(
        settings.images,
        settings.feature_dim,
        data_root=run.data_root,
        seed=run.seed,
        features=None if name == POOLED else grids,
        counted=VOCABULARY_FROM,
        by_image=True,
    )
    step = StepSettings(
        hidden_size=size,
        batch_size=settings.batch_size,
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
        output_dropout=config.model.output_dropout,
        label_smoothing=config.trainer.label_smoothing,
    )
    return AttentionTraining(workload=workload, settings=step, device=run.device, config=config)


class PlainAttentionSteps(PlainSteps):
    """The tutorials' loop, its weights those of model=show_attend_tell."""

    def __init__(self, training: AttentionTraining, *, keys_once: bool) -> None:
        self.keys_once, self.config = keys_once, training.config.model
        super().__init__(training)

    def _model(self, training: Training) -> tuple[nn.Module, Loss]:
        named = training.model("torch").named_parameters()
        weights = {name.removeprefix("words.").replace("_l0", ""): x for name, x in named}
        rate, smoothing = training.settings.output_dropout, training.settings.label_smoothing
        assert isinstance(self.config, ShowAttendTellConfig)
        factor = self.config.doubly_stochastic
        loss = partial(doubly_stochastic_loss, label_smoothing=smoothing, factor=factor)
        return PlainAttention(weights, dropout=rate, keys_once=self.keys_once), loss


class ProductSteps(Steps):
    """The products of a step's region projection, keys and values, forward and backward: there are
    no losses."""

    def __init__(self, training: AttentionTraining) -> None:
        hidden, store = training.settings.hidden_size, training.data.store
        rows = training.settings.batch_size * store.regions
        gemms = Gemms(
            hidden=hidden, vocab_size=1, feature_dim=store.feature_dim, device=training.device
        )
        self.calls = [
            *gemms.linear("regions", rows, store.feature_dim, hidden, input_gradient=False),
            *gemms.linear("keys", rows, hidden, hidden),
            *gemms.linear("values", rows, hidden, hidden),
        ]

    def losses(self, count: int) -> list[float]:
        """The products of `count` batches."""
        for call in itertools.chain.from_iterable([self.calls] * count):
            call()
        return []


def _start(
    stack: ExitStack, name: str, settings: AttentionBenchmark, run: Run, grids: str
) -> Worker:
    """A worker that has taken its first steps, with this process's number of threads."""
    given = (name, settings, run, grids)
    worker = stack.enter_context(Worker(TimedModel, *given, threads=torch.get_num_threads()))
    worker.call("result")
    return worker


class TimedModel(TimedSteps):
    """An implementation in a Worker: its steps timed there, and where it is a model, its beam
    search."""

    training: AttentionTraining

    def __init__(self, name: str, settings: AttentionBenchmark, run: Run, grids: str) -> None:
        super().__init__(name, attention_training(name, settings, run, grids), WARM_UP)

    @cached_property
    def generator(self) -> CaptionGenerator:
        """Beam search of the model with its first weights; see SEARCHED."""
        training, vocabulary = self.training, self.training.data.vocabulary
        config = replace(training.config.generation, min_length=SEARCHED, max_length=SEARCHED)
        search = build_generation(config, vocabulary)
        return CaptionGenerator(training.model("auto"), vocabulary, search)

    def captions(self) -> list[list[Caption]]:
        """Captions of all images, whose features are read as from the cache."""
        store, size = self.training.data.store, self.training.config.generation.batch_size
        rows = torch.arange(len(store)).split(size)
        images = (store.gather(one).to(self.training.device) for one in rows)
        return list(self.generator.all_captions(images))

    def caption_seconds(self) -> float:
        """Seconds in which all images are captioned."""
        assert self.generator  # made now
        started = time.perf_counter()
        self.captions()
        return time.perf_counter() - started
