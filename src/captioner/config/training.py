"""Schemas of training: the optimiser, the loop, a whole run, and sweeps of runs."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from captioner.checks import each_in_range, in_range, one_of, positive
from captioner.config.commands import RunConfig
from captioner.config.data import TextData, VocabularyConfig
from captioner.config.model import (
    EncoderConfig,
    GenerationConfig,
    LiteratureConfig,
    ModelConfig,
    RnnConfig,
)
from captioner.errors import ConfigError

OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")
SCHEDULES = ("constant", "cosine", "linear")
CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
TEXT_METRICS = ("loss", "perplexity", "bits_per_character", "bits_per_byte")


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
        one_of("optimizer.name", self.name, OPTIMIZERS)
        one_of("optimizer.schedule", self.schedule, SCHEDULES)
        for key in ("lr", "eps", "clip_norm", "clip_value"):
            positive(f"optimizer.{key}", getattr(self, key))
        if len(self.betas) != 2:
            raise ConfigError(f"optimizer.betas must be two numbers, got {list(self.betas)}")
        for value in (*self.betas, self.alpha, self.momentum):
            in_range("optimizer.betas, alpha and momentum", value, 0, 0.999999)
        each_in_range("optimizer", self, "weight_decay warmup_steps", 0)


@dataclass
class TrainerConfig:
    """The loop; see training/trainer.py.

    batch_size counts captions, or with batch_by=picture images with all their captions, which a
    trained encoder then encodes once; of a text, parallel streams, `window` tokens a step, and an
    epoch is `epoch_windows` windows (null: the whole text). precision is float32 or bf16
    (autocast). workers are processes that read images for a trained encoder, where these are too
    many to stay in memory. profile writes trace.json, five steps for Perfetto. replicas trains so
    many models at once on the same batches, see ReplicasConfig; order_seed decides the order of the
    batches (null: seed). ema, such as 0.999: the decay of a moving average of the weights, which is
    validated and kept as best.pt; keep_epochs keeps the weights of so many last epochs as
    epoch_N.pt, for scripts/average.py. graph=on replays each step as one CUDA graph, with the data
    in GPU memory; auto logs its choice and the reason. scoring: the scores of a validation are
    computed in another process, beside the next epoch, or inline; auto: beside, where they take
    more than 0.2 s.
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
    replicas: int = 1
    order_seed: int | None = None
    ema: float | None = None
    keep_epochs: int = 0
    graph: str = "auto"
    scoring: str = "auto"

    def __post_init__(self) -> None:
        each_in_range("trainer", self, "epochs batch_size window epoch_windows accumulation", 1)
        each_in_range("trainer", self, "patience checkpoint_steps log_steps replicas", 1)
        each_in_range("trainer", self, "workers order_seed keep_epochs shown_pictures", 0)
        in_range("trainer.label_smoothing", self.label_smoothing, 0, 0.999)
        in_range("trainer.ema", self.ema, 0, 0.999999)
        positive("trainer.checkpoint_minutes", self.checkpoint_minutes)
        one_of("trainer.batch_by", self.batch_by, ("caption", "picture"))
        one_of("trainer.graph", self.graph, ("auto", "on", "off"))
        one_of("trainer.scoring", self.scoring, ("auto", "beside", "inline"))
        one_of("trainer.precision", self.precision, ("float32", "bf16"))
        one_of("trainer.best_metric", self.best_metric, CAPTION_METRICS + TEXT_METRICS)


@dataclass
class ReplicasConfig:
    """What differs among the models of trainer.replicas=K: lists of K values.

    null leaves a setting as it is for all of them; the seeds are then seed, seed + 1, ...
    """

    seed: list[int] | None = None
    lr: list[float] | None = None
    weight_decay: list[float] | None = None
    input_dropout: list[float] | None = None
    output_dropout: list[float] | None = None
    layer_dropout: list[float] | None = None
    feature_dropout: list[float] | None = None

    def __post_init__(self) -> None:
        for value in self.lr or []:
            positive("replicas.lr", value)
        for value in self.weight_decay or []:
            in_range("replicas.weight_decay", value, 0)
        for key in ("input_dropout", "output_dropout", "layer_dropout", "feature_dropout"):
            for value in getattr(self, key) or []:
                in_range(f"replicas.{key}", value, 0, 0.999)

    def given(self) -> dict[str, list[Any]]:
        """The lists that are not null."""
        return {key: values for key, values in vars(self).items() if values is not None}


@dataclass
class TrainConfig(RunConfig):
    """scripts/train.py. `run_dir` keeps everything of the run; `resume` continues what is there.

    sweep_dir: with -m, the folder of all runs; given again, the sweep is resumed.
    """

    name: str = MISSING
    seed: int = 0
    run_dir: str = MISSING
    sweep_dir: str = ""
    resume: bool = False
    data: Any = MISSING
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    encoder: EncoderConfig = MISSING
    rnn: RnnConfig = field(default_factory=RnnConfig)
    model: ModelConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    generation: GenerationConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_text()
        self._check_attention()
        self._check_replicas()
        trained = self.encoder.train_from is not None
        if trained and self.model.feature_norm == "standardise":
            raise ConfigError(
                "model.feature_norm=standardise needs features that stay as they are, but "
                f"encoder.train_from={self.encoder.train_from} trains the encoder; take none or l2"
            )
        if trained and self.encoder.kind == "features":
            raise ConfigError("encoder.train_from needs an encoder, but encoder.kind is features")

    def _check_attention(self) -> None:
        """What a model that attends needs, and one with feedback cannot have."""
        kind = self.model.kind
        if not self.model.attends:
            return
        if isinstance(self.data, TextData):
            raise ConfigError(f"model={kind} attends to images: text needs model=show_and_tell")
        if self.encoder.output != "grid" and self.encoder.kind != "features":
            raise ConfigError(
                f"model={kind} attends to regions: it needs encoder.output=grid, got "
                f"{self.encoder.output}"
            )
        if isinstance(self.model, LiteratureConfig) and self.rnn.kind != "lstm":
            raise ConfigError(f"model={kind} needs rnn.kind=lstm, got {self.rnn.kind}")
        if self.model.feedback and self.trainer.graph == "on":
            raise ConfigError(
                f"trainer.graph=on cannot be with model={kind}: each of its steps needs what the "
                "step before attended to, so that lengths are read on the host"
            )
        if self.model.feedback and self.trainer.replicas > 1:
            raise ConfigError(
                f"trainer.replicas must be 1 for model={kind}, got {self.trainer.replicas}: its "
                "loop over time leaves nothing for replicas to share"
            )

    def _check_replicas(self) -> None:
        """As many values as replicas, and the same images' features for all of them."""
        count = self.trainer.replicas
        for key, values in self.replicas.given().items():
            if len(values) != count:
                raise ConfigError(
                    f"replicas.{key} must have a value for each of trainer.replicas={count}, got "
                    f"{len(values)}"
                )
        drawn = self.encoder.weights == "random" and self.encoder.train_from is None
        if count > 1 and drawn and self.encoder.kind not in ("none", "features"):
            raise ConfigError(
                "replicas share the features of a frozen encoder, but with encoder.weights=random "
                "each seed has its own; take other weights, or train them (encoder.train_from)"
            )

    def _check_text(self) -> None:
        """What a language model of text alone cannot have, and a captioner must."""
        text = isinstance(self.data, TextData)
        if text != (self.encoder.kind == "none"):
            raise ConfigError(
                f"text needs encoder=none and images another encoder, got data.kind="
                f"{self.data.kind} and encoder.kind={self.encoder.kind}"
            )
        if text and self.trainer.best_metric not in TEXT_METRICS:
            raise ConfigError(
                f"trainer.best_metric must be one of {', '.join(TEXT_METRICS)} for text, got "
                f"{self.trainer.best_metric!r}"
            )


@dataclass
class GridSweepConfig:
    """hydra/sweeper=grid: every combination of the values that are given with commas.

    max_batch_size: how many runs are launched before the first of them are waited for (null: all);
    params: keys and values as on the command line, for a sweep that is written down.
    """

    _target_: str = "hydra_plugins.captioner_sweepers.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


@dataclass
class StudySweepConfig:
    """hydra/sweeper=optuna: a stored Optuna study of trainer.best_metric; the extra [sweeps].

    n_trials: of the whole study, those of earlier processes among them; n_jobs: trials launched at
    once; storage: an Optuna storage (null: sqlite, study.db in the sweep's folder); study_name
    (null: the folder's name); sampler tpe or random; params: intervals and values as on the command
    line, for a search space that is written down.
    """

    _target_: str = "hydra_plugins.captioner_sweepers.StudySweeper"
    n_trials: int = 20
    n_jobs: int = 1
    storage: str | None = None
    study_name: str | None = None
    sampler: str = "tpe"
    seed: int = 0
    params: dict[str, str] | None = None
