"""Typed schemas of the configuration: every key, its type, its default and what it may be.

Hydra checks keys and types while it composes; the values are checked here, when OmegaConf turns
the composed tree into these dataclasses (`parse`). Nothing but build.py reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from captioner.benchmarks.schema import (
    BeamBenchmark,
    EpochBenchmark,
    FeaturesBenchmark,
    KindsBenchmark,
    LstmBenchmark,
    MetricsBenchmark,
    ScaleBenchmark,
    WindowsBenchmark,
)
from captioner.checks import in_range, one_of, positive
from captioner.data.prepare import IMAGES_URL, TEXT_URL
from captioner.data.text_codec import UNITS
from captioner.data.vocabulary import RARE
from captioner.errors import ConfigError
from captioner.evaluation.metrics import FAST, METRICS
from captioner.evaluation.protocol import PROTOCOLS
from captioner.models.captioner import FEATURE_NORMS
from captioner.models.rnn import RNN_KINDS
from captioner.ops import BACKENDS
from captioner.training.optimisation import OPTIMIZERS, SCHEDULES

SPLITS = ("train", "dev", "test")
ENCODERS = ("torchvision", "timm", "efficientnet_lite", "plain", "features", "none")
TEXT_SOURCES = ("path", "python", "tiny_shakespeare")
TEXT_METRICS = ("loss", "perplexity", "bits_per_character", "bits_per_byte")
SUITES = ("features", "epoch", "scale", "beam", "lstm", "windows", "kinds", "metrics")


@dataclass
class DataConfig:
    """Captioned pictures; `kind` says in which format (each has a schema below)."""

    kind: str = MISSING


@dataclass
class ScenesData(DataConfig):
    """Pictures that the package draws itself: numbers of pictures a split, side in pixels."""

    kind: str = "scenes"
    root: str = ".cache/scenes"
    train: int = 4000
    dev: int = 300
    test: int = 300
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for split in SPLITS:
            in_range(f"data.{split}", getattr(self, split), 1)
        in_range("data.size", self.size, 32, 1024)


@dataclass
class Flickr8kData(DataConfig):
    """Flickr8k in the folder `root`; layout auto, official, kaggle or karpathy."""

    kind: str = "flickr8k"
    root: str = MISSING
    layout: str = "auto"

    def __post_init__(self) -> None:
        one_of("data.layout", self.layout, ("auto", "official", "kaggle", "karpathy"))


@dataclass
class KarpathyData(DataConfig):
    """Any Karpathy JSON (Flickr8k, Flickr30k, COCO) and the folder of its pictures."""

    kind: str = "karpathy"
    json: str = MISSING
    images: str = MISSING
    restval_in_train: bool = True


@dataclass
class CocoData(DataConfig):
    """COCO caption annotations, a file and a folder of pictures a split (test may be null)."""

    kind: str = "coco"
    train_annotations: str = MISSING
    train_images: str = MISSING
    dev_annotations: str = MISSING
    dev_images: str = MISSING
    test_annotations: str | None = None
    test_images: str | None = None


@dataclass
class FolderData(DataConfig):
    """A folder of pictures with a CSV or JSON Lines file (image, caption, perhaps split)."""

    kind: str = "folder"
    captions: str = MISSING
    images: str = MISSING
    dev_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("data.dev_fraction", self.dev_fraction, 0, 1)
        in_range("data.test_fraction", self.test_fraction, 0, 1)
        if self.dev_fraction + self.test_fraction >= 1:
            raise ConfigError("data.dev_fraction + data.test_fraction must leave some for training")


@dataclass
class TextData(DataConfig):
    """Text for a language model, with no pictures: encoder=none.

    source: path (a UTF-8 file, or a folder: its files named train, valid and test, or else whatever
    matches pattern, each a document), python (the standard library's own source), or
    tiny_shakespeare (at path, or downloaded). unit: character, byte or word, of which
    vocabulary.min_count keeps the frequent. The fractions are the shares of the dev and test splits
    where files do not say; seed deals out a folder's files.
    """

    kind: str = "text"
    source: str = "path"
    path: str | None = None
    unit: str = "character"
    pattern: str = "*.txt"
    dev_fraction: float = 0.1
    test_fraction: float = 0.0
    seed: int = 0
    cache_dir: str = ".cache/text"

    def __post_init__(self) -> None:
        one_of("data.source", self.source, TEXT_SOURCES)
        one_of("data.unit", self.unit, UNITS)
        in_range("data.dev_fraction", self.dev_fraction, 0.001, 0.9)
        in_range("data.test_fraction", self.test_fraction, 0, 0.9)
        if self.dev_fraction + self.test_fraction >= 1:
            raise ConfigError("data.dev_fraction + data.test_fraction must leave some for training")
        if self.source == "path" and not self.path:
            raise ConfigError("data.path must name a text file or a folder of them")


@dataclass
class VocabularyConfig:
    """Which words are kept and how long a training caption may be (in words)."""

    min_count: int = 5
    rare: str = "unk"
    max_length: int = 50

    def __post_init__(self) -> None:
        in_range("vocabulary.min_count", self.min_count, 1)
        in_range("vocabulary.max_length", self.max_length, 1)
        one_of("vocabulary.rare", self.rare, RARE)


@dataclass
class EncoderConfig:
    """The picture network.

    kind: torchvision, timm, efficientnet_lite, plain (for small pictures), features (your own, in
    `path`), or none for a language model of text alone. weights: torchvision, timm or registry (the
    kind's own), random, or a file. output: pooled or grid; grid_size pools the grid to that side.
    size: the side in pixels; resize: the short side before the centre crop, or squash for the whole
    picture; null takes the network's own. train_from: a stage's name trains it and all after it
    with learning rate lr; null freezes the network and caches its features in cache_dir, batch_size
    pictures at a time. workers: processes that read pictures for a GPU; on a CPU each thread reads
    its own.
    """

    kind: str = MISSING
    name: str = MISSING
    weights: str = MISSING
    output: str = "pooled"
    grid_size: int | None = None
    size: int | None = None
    resize: Any = None
    train_from: str | None = None
    lr: float | None = None
    path: str | None = None
    cache_dir: str = ".cache/features"
    batch_size: int = 32
    workers: int = 2

    def __post_init__(self) -> None:
        one_of("encoder.kind", self.kind, ENCODERS)
        one_of("encoder.output", self.output, ("pooled", "grid"))
        if self.resize not in (None, "squash") and not isinstance(self.resize, int):
            raise ConfigError(
                f"encoder.resize must be squash, a number of pixels or null, got {self.resize!r}"
            )
        in_range("encoder.grid_size", self.grid_size, 1)
        in_range("encoder.size", self.size, 16)
        positive("encoder.lr", self.lr)
        in_range("encoder.batch_size", self.batch_size, 1)
        in_range("encoder.workers", self.workers, 0)
        if self.kind == "features" and not self.path:
            raise ConfigError("encoder.path must name your features (.npy or .safetensors)")


@dataclass
class RnnConfig:
    """The recurrent layers: lstm, gru or rnn_tanh; variational_dropout keeps a sequence's mask."""

    kind: str = "lstm"
    variational_dropout: bool = False

    def __post_init__(self) -> None:
        one_of("rnn.kind", self.kind, RNN_KINDS)


@dataclass
class DecoderConfig:
    """The language model and how the image enters it; initialisation as in `initialise`.

    feature_norm auto is standardise for features that stay as they are, none for a trained encoder.
    """

    embedding_dim: int = 512
    hidden_size: int = 512
    num_layers: int = 1
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    layer_dropout: float = 0.0
    feature_dropout: float = 0.0
    feature_norm: str = "auto"
    tie_embeddings: bool = False
    init: str = "uniform"
    init_scale: float = 0.08
    forget_bias: float = 1.0
    output_bias_from_counts: bool = True
    backend: str = "auto"

    def __post_init__(self) -> None:
        for key in ("embedding_dim", "hidden_size", "num_layers"):
            in_range(f"decoder.{key}", getattr(self, key), 1)
        for key in ("input_dropout", "output_dropout", "layer_dropout", "feature_dropout"):
            in_range(f"decoder.{key}", getattr(self, key), 0, 0.999)
        positive("decoder.init_scale", self.init_scale)
        one_of("decoder.feature_norm", self.feature_norm, ("auto", *FEATURE_NORMS))
        one_of("decoder.init", self.init, ("uniform", "xavier"))
        one_of("decoder.backend", self.backend, BACKENDS)
        if self.tie_embeddings and self.embedding_dim != self.hidden_size:
            raise ConfigError(
                "decoder.tie_embeddings needs decoder.embedding_dim = decoder.hidden_size, got "
                f"{self.embedding_dim} and {self.hidden_size}"
            )


@dataclass
class OptimizerConfig:
    """The optimiser, its schedule and clipping; betas for adam(w), alpha for rmsprop."""

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    alpha: float = 0.99
    momentum: float = 0.0
    eps: float = 1e-8
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, tuple(OPTIMIZERS))
        one_of("optimizer.schedule", self.schedule, SCHEDULES)
        for key in ("lr", "eps", "clip_norm", "clip_value"):
            positive(f"optimizer.{key}", getattr(self, key))
        if len(self.betas) != 2:
            raise ConfigError(f"optimizer.betas must be two numbers, got {list(self.betas)}")
        for value in (*self.betas, self.alpha, self.momentum):
            in_range("optimizer.betas, alpha and momentum", value, 0, 0.999999)
        in_range("optimizer.weight_decay", self.weight_decay, 0)
        in_range("optimizer.warmup_steps", self.warmup_steps, 0)


@dataclass
class TrainerConfig:
    """The loop; see training/trainer.py.

    batch_size counts captions, or with batch_by=picture pictures with all their captions, which a
    trained encoder then computes once; of a text, streams that are read side by side, `window`
    tokens a step, and an epoch is `epoch_windows` windows (null: the whole text).
    precision is float32 or bf16 (autocast). workers are processes that read pictures for a trained
    encoder, where these are too many to stay in memory. profile writes trace.json, five steps for
    Perfetto.
    """

    epochs: int = 10
    batch_size: int = 64
    batch_by: str = "caption"
    window: int = 64
    epoch_windows: int | None = None
    accumulation: int = 1
    label_smoothing: float = 0.0
    precision: str = "float32"
    best_metric: str = "BLEU-4"
    patience: int | None = None
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int | None = None
    log_steps: int = 20
    workers: int = 1
    shown_pictures: int = 8
    progress: bool = True
    profile: bool = False

    def __post_init__(self) -> None:
        for key in (
            "epochs", "batch_size", "window", "epoch_windows", "accumulation", "patience",
            "checkpoint_steps", "log_steps",
        ):  # fmt: skip
            in_range(f"trainer.{key}", getattr(self, key), 1)
        in_range("trainer.label_smoothing", self.label_smoothing, 0, 0.999)
        in_range("trainer.workers", self.workers, 0)
        in_range("trainer.shown_pictures", self.shown_pictures, 0)
        positive("trainer.checkpoint_minutes", self.checkpoint_minutes)
        one_of("trainer.batch_by", self.batch_by, ("caption", "picture"))
        one_of("trainer.precision", self.precision, ("float32", "bf16"))
        metrics = (
            "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", *TEXT_METRICS,
        )  # fmt: skip
        one_of("trainer.best_metric", self.best_metric, metrics)


@dataclass
class DecodeConfig:
    """How captions are searched or drawn; see decoding/. Lengths are in words."""

    method: str = "beam"
    beam_size: int = 3
    groups: int = 1
    diversity: float = 0.5
    length_penalty: float = 0.0
    samples: int = 5
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    n_best: int = 1
    min_length: int = 1
    max_length: int = 30
    no_repeat_ngram: int = 0
    allow_unknown: bool = False
    batch_size: int = 100

    def __post_init__(self) -> None:
        one_of("decode.method", self.method, ("greedy", "beam", "sample"))
        for key in (
            "beam_size",
            "groups",
            "samples",
            "n_best",
            "max_length",
            "batch_size",
            "top_k",
        ):
            in_range(f"decode.{key}", getattr(self, key), 1)
        for key in ("diversity", "length_penalty", "min_length", "no_repeat_ngram"):
            in_range(f"decode.{key}", getattr(self, key), 0)
        positive("decode.temperature", self.temperature)
        positive("decode.top_p", self.top_p)
        in_range("decode.top_p", self.top_p, 0, 1)
        if self.min_length > self.max_length:
            raise ConfigError(
                f"decode.min_length {self.min_length} exceeds decode.max_length {self.max_length}"
            )
        if self.beam_size % self.groups:
            raise ConfigError(
                f"decode.groups must divide decode.beam_size, got {self.groups} and "
                f"{self.beam_size}"
            )


@dataclass
class RunConfig:
    """What every command has: torch threads (null: torch's own) and the device."""

    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        one_of("device", self.device.split(":")[0], ("auto", "cpu", "cuda"))
        in_range("threads", self.threads, 1)


@dataclass
class TrainConfig(RunConfig):
    """scripts/train.py. `run_dir` keeps everything of the run; `resume` continues what is there."""

    name: str = MISSING
    seed: int = 0
    run_dir: str = MISSING
    resume: bool = False
    data: Any = MISSING
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    encoder: EncoderConfig = MISSING
    rnn: RnnConfig = field(default_factory=RnnConfig)
    decoder: DecoderConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    decode: DecodeConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_text()
        trained = self.encoder.train_from is not None
        if trained and self.decoder.feature_norm == "standardise":
            raise ConfigError(
                "decoder.feature_norm=standardise needs features that stay as they are, but "
                f"encoder.train_from={self.encoder.train_from} trains the encoder; take none or l2"
            )
        if trained and self.encoder.kind == "features":
            raise ConfigError("encoder.train_from needs an encoder, but encoder.kind is features")

    def _check_text(self) -> None:
        """What a language model of text alone cannot have, and a captioner must."""
        text = isinstance(self.data, TextData)
        if text != (self.encoder.kind == "none"):
            raise ConfigError(
                f"text goes with encoder=none and pictures with another, got data.kind="
                f"{self.data.kind} and encoder.kind={self.encoder.kind}"
            )
        if text and self.trainer.best_metric not in TEXT_METRICS:
            raise ConfigError(
                f"trainer.best_metric must be one of {', '.join(TEXT_METRICS)} for text, got "
                f"{self.trainer.best_metric!r}"
            )


@dataclass
class ScoringConfig(RunConfig):
    """How captions are scored. metrics: of evaluation.metrics.METRICS; METEOR and SPICE need Java.

    brevity_penalty null is the protocol's own; samples: of the bootstrap, 0 for none;
    document_frequencies: a saved table for CIDEr; report: pictures in report.html, 0 for none.
    """

    protocol: str = "coco"
    brevity_penalty: bool | None = None
    metrics: list[str] = field(default_factory=lambda: [*FAST, "METEOR-py"])
    samples: int = 1000
    document_frequencies: str | None = None
    report: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("protocol", self.protocol, tuple(PROTOCOLS))
        for name in self.metrics:
            one_of("metrics", name, METRICS)
        in_range("samples", self.samples, 0)
        in_range("report", self.report, 0)


@dataclass
class EvaluateConfig(ScoringConfig):
    """scripts/evaluate.py: a checkpoint on a split, anybody's results file, or people themselves.

    out: the folder of a checkpoint's scores, or the file of the others'; subset allows results
    for only some of the annotated images; human scores one reference against the others, of
    `references` or of a split of `data`. sanity adds baselines and warnings, leakage also compares
    all pictures with the training set's. A language model of text is scored on `split` of its data
    or of data=text (all: the whole of it); page: an HTML file that shows how unexpected each of the
    first page_tokens tokens was.
    """

    checkpoint: str | None = None
    split: str = "dev"
    data: Any = None
    decode: DecodeConfig = MISSING
    results: str | None = None
    references: str | None = None
    out: str | None = None
    subset: bool = False
    human: bool = False
    sanity: bool = True
    leakage: bool = False
    page: str | None = None
    page_tokens: int = 20000

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("page_tokens", self.page_tokens, 1)
        if self.human:
            if (self.data is None) == (self.references is None):
                raise ConfigError("human=true needs data=..., or references=FILE, one of the two")
            return
        files = (self.results, self.references)
        if self.checkpoint is None and None in files:
            raise ConfigError(
                "evaluate.py needs checkpoint=FILE, or results=FILE and references=FILE together"
            )
        if self.checkpoint is not None and any(files):
            raise ConfigError("give evaluate.py either checkpoint=, or results= and references=")


@dataclass
class CompareConfig:
    """scripts/compare.py: scored runs (folders or scores.json files); two are tested in pairs.

    metric decides which images are shown as most different; report writes a page for two runs.
    """

    runs: list[str] = MISSING
    metric: str = "CIDEr-D"
    shown: int = 10
    samples: int = 10000
    seed: int = 0
    out: str | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise ConfigError(f"compare.py needs two runs or more, got {len(self.runs)}")
        in_range("samples", self.samples, 1)
        in_range("shown", self.shown, 0)
        if self.report is not None and len(self.runs) != 2:
            raise ConfigError(f"report= shows two runs side by side, got {len(self.runs)}")


@dataclass
class CaptionConfig(RunConfig):
    """scripts/caption.py: `images` are files, folders or globs, separated by commas or a list."""

    checkpoint: str = MISSING
    images: Any = MISSING
    decode: DecodeConfig = MISSING
    out: str | None = None


@dataclass
class SampleConfig(RunConfig):
    """scripts/sample.py: n texts of at most `length` tokens after `prompt`, up to the text `stop`.

    top_k, top_p: draw among the likeliest only; out: a JSON file of them all.
    """

    checkpoint: str = MISSING
    prompt: str = ""
    length: int = 600
    n: int = 1
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("length", "n", "top_k"):
            in_range(key, getattr(self, key), 1)
        positive("temperature", self.temperature)
        positive("top_p", self.top_p)
        in_range("top_p", self.top_p, 0, 1)
        if self.stop == "":
            raise ConfigError("stop must be a text of one character or more, or null")


@dataclass
class PrepareConfig:
    """scripts/prepare_flickr8k.py: where the data set is or shall be, and where it comes from.

    A sha256 given here is what the archive must have; without one the mirror's md5, or the sum
    recorded at the first download, is held against it.
    """

    root: str = "data/flickr8k"
    download: bool = True
    images_url: str = IMAGES_URL
    text_url: str = TEXT_URL
    images_sha256: str | None = None
    text_sha256: str | None = None


@dataclass
class BenchmarkConfig(RunConfig):
    """scripts/benchmark.py: one suite, its sides measured in turn `repeats` times.

    data_root: Flickr8k's folder, for its captions and pictures; null draws ones like them. out: the
    JSON record. plot: a picture of suite=lstm or suite=scale, such as lstm.png.
    """

    suite: str = MISSING
    threads: int | None = 2
    repeats: int = 7
    seed: int = 0
    data_root: str | None = None
    out: str | None = None
    plot: str | None = None
    features: FeaturesBenchmark = field(default_factory=FeaturesBenchmark)
    epoch: EpochBenchmark = field(default_factory=EpochBenchmark)
    scale: ScaleBenchmark = field(default_factory=ScaleBenchmark)
    beam: BeamBenchmark = field(default_factory=BeamBenchmark)
    lstm: LstmBenchmark = field(default_factory=LstmBenchmark)
    windows: WindowsBenchmark = field(default_factory=WindowsBenchmark)
    kinds: KindsBenchmark = field(default_factory=KindsBenchmark)
    metrics: MetricsBenchmark = field(default_factory=MetricsBenchmark)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("suite", self.suite, SUITES)
        if self.plot is not None and self.suite not in ("lstm", "scale"):
            raise ConfigError(f"plot draws suite=lstm and suite=scale, got suite={self.suite}")
        in_range("repeats", self.repeats, 1)
        in_range("seed", self.seed, 0)


GROUPS: dict[str, dict[str, type]] = {
    "data": {
        "scenes": ScenesData,
        "flickr8k": Flickr8kData,
        "karpathy": KarpathyData,
        "coco": CocoData,
        "folder": FolderData,
        "text": TextData,
    },
    "encoder": {"base": EncoderConfig},
    "decoder": {"base": DecoderConfig},
    "optimizer": {"base": OptimizerConfig},
    "trainer": {"base": TrainerConfig},
    "decode": {"base": DecodeConfig},
}
COMMANDS = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "caption": CaptionConfig,
    "sample": SampleConfig,
    "prepare_flickr8k": PrepareConfig,
    "benchmark": BenchmarkConfig,
}


def register_schemas() -> None:
    """Tell Hydra the schemas; each YAML names its own first in its defaults list."""
    store = ConfigStore.instance()
    for group, schemas in GROUPS.items():
        for name, schema in schemas.items():
            store.store(group=group, name=f"{name}_schema", node=schema)
    for name, schema in COMMANDS.items():
        store.store(name=f"{name}_schema", node=schema)


def parse(config: DictConfig) -> Any:
    """The composed configuration as dataclasses, every value checked; ConfigError otherwise."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]} must be given: add {missing[0]}=... to the command")
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be given") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).replace("\n", "; ")) from error


def data_config(tree: dict[str, Any]) -> DataConfig:
    """The data schema of a plain dict that a checkpoint or config.yaml holds."""
    one_of("data.kind", tree.get("kind", ""), tuple(GROUPS["data"]))
    schema = GROUPS["data"][tree["kind"]]
    return schema(**tree)


def known_keys(schema: Any, prefix: str = "") -> list[str]:
    """Every key of a schema instance or class, nested ones with dots."""
    keys = []
    for item in fields(schema):
        key = f"{prefix}{item.name}"
        keys.append(key)
        own = [] if item.name in GROUPS else [item.default_factory]
        for inner in (*GROUPS.get(item.name, {}).values(), *own):
            if is_dataclass(inner):
                keys += known_keys(inner, f"{key}.")
    return sorted(set(keys))
