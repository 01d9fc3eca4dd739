"""Schemas of training: the optimiser, the loop, a whole run, and sweeps of runs."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from captioner.config.commands import RunConfig
from captioner.config.data import TextData, VocabularyConfig
from captioner.config.model import (
    SCHEDULES,
    EncoderConfig,
    GenerationConfig,
    LiteratureConfig,
    ModelConfig,
    RnnConfig,
)
from captioner.config.ranges import (
    COUNT,
    COUNT_OR_NONE,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    PROBABILITY,
    PROCESSES,
    RATE,
    SEED,
    SHARE,
    TEXT,
    Checked,
    Choice,
    Range,
    setting,
)
from captioner.errors import ConfigError

OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")
OBJECTIVES = ("cross_entropy", "reward")
BASELINES = ("others", "greedy")
SEARCHES = ("sample", "beam")
CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
DECAY = Range(0, 0.999999)  # of a moving average
SAMPLERS = ("tpe", "random")
SHORTEST_RANDOM_WINDOW = 10
# What captions cannot have.
_OF_TEXT = {
    "model": ("activation_regularisation", "temporal_activation_regularisation"),
    "trainer": ("random_windows", "scale_lr_by_window"),
}
TEXT_METRICS = ("loss", "perplexity", "bits_per_character", "bits_per_byte")


@dataclass
class OptimizerConfig(Checked):
    """The optimiser, its schedule and clipping; betas for adam(w), alpha for rmsprop."""

    group: ClassVar[str] = "optimizer"

    name: str = setting("adam", Choice(OPTIMIZERS))
    lr: float = setting(1e-3, POSITIVE)
    weight_decay: float = setting(0.0, NOT_NEGATIVE)
    betas: list[float] = setting([0.9, 0.999], DECAY)
    alpha: float = setting(0.99, DECAY)
    momentum: float = setting(0.0, DECAY)
    eps: float = setting(1e-8, POSITIVE)
    schedule: str = setting("constant", Choice(SCHEDULES))
    warmup_steps: int = setting(0, COUNT_OR_NONE)
    clip_norm: float | None = setting(None, POSITIVE)
    clip_value: float | None = setting(None, POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2:
            raise ConfigError(f"optimizer.betas must be two numbers, got {list(self.betas)}")


@dataclass
class TrainerConfig(Checked):
    """The loop; see training/trainer.py.

    batch_size counts captions, or with batch_by=picture images with all their captions, which a
    trained encoder then encodes once; of a text, parallel streams, `window` tokens a step, and an
    epoch is `epoch_windows` windows (null: the whole text). random_windows draws their lengths
    around `window`; scale_lr_by_window: the learning rate of a step is in proportion to its tokens.
    precision is float32 or bf16 (autocast). workers are processes that read images for a trained
    encoder, where these are too many to stay in memory. profile writes trace.json, five steps for
    Perfetto. replicas trains so many models at once on the same batches, see ReplicasConfig;
    order_seed decides the order of the batches (null: seed). ema, such as 0.999: the decay of a
    moving average of the weights, which is validated and kept as best.pt; keep_epochs keeps the
    weights of so many last epochs as epoch_N.pt, for scripts/average.py. graph=on replays each step
    as one CUDA graph, with the data in GPU memory; auto logs its choice and the reason. scoring:
    the scores of a validation are computed in another process, beside the next epoch, or inline;
    auto: beside, where they take more than 0.2 s. objective: cross_entropy, or reward, see
    RewardConfig. scheduled_sampling: the highest probability with which a word that training reads
    is the model's own, see training/scheduled_sampling.py: it is 0 in the first
    scheduled_sampling_start epochs and grows by scheduled_sampling_increase an epoch from then on.
    halving_epoch: in a sweep, after so many epochs and each time they are halving_factor times as
    many, only the best 1 / halving_factor of the runs go on, see runs/halving.py.
    """

    group: ClassVar[str] = "trainer"

    epochs: int = setting(10, COUNT)
    batch_size: int = setting(64, COUNT)
    batch_by: str = setting("caption", Choice(("caption", "picture")))
    window: int = setting(64, COUNT)
    epoch_windows: int | None = setting(None, COUNT)
    random_windows: bool = False
    scale_lr_by_window: bool = False
    accumulation: int = setting(1, COUNT)
    objective: str = setting("cross_entropy", Choice(OBJECTIVES))
    label_smoothing: float = setting(0.0, RATE)
    scheduled_sampling: float = setting(0.0, SHARE)
    scheduled_sampling_increase: float = setting(0.05, PROBABILITY)
    scheduled_sampling_start: int = setting(0, COUNT_OR_NONE)
    precision: str = setting("float32", Choice(("float32", "bf16")))
    best_metric: str = setting("BLEU-4", Choice(CAPTION_METRICS + TEXT_METRICS))
    patience: int | None = setting(None, COUNT)
    halving_epoch: int | None = setting(None, COUNT)
    halving_factor: int = setting(3, Range(2, 1000))
    checkpoint_minutes: float = setting(5.0, POSITIVE)
    checkpoint_steps: int | None = setting(None, COUNT)
    log_steps: int = setting(20, COUNT)
    workers: int = setting(1, PROCESSES)
    shown_pictures: int = setting(8, COUNT_OR_NONE)
    progress: bool = True
    profile: bool = False
    replicas: int = setting(1, Range(1, 1000))
    order_seed: int | None = setting(None, SEED)
    ema: float | None = setting(None, DECAY)
    keep_epochs: int = setting(0, COUNT_OR_NONE)
    graph: str = setting("auto", Choice(("auto", "on", "off")))
    scoring: str = setting("auto", Choice(("auto", "beside", "inline")))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_windows and self.window < SHORTEST_RANDOM_WINDOW:
            raise ConfigError(
                f"trainer.random_windows draws lengths with a deviation of 5 tokens: it needs a "
                f"trainer.window of {SHORTEST_RANDOM_WINDOW} or more, got {self.window}"
            )


@dataclass
class RewardConfig(Checked):
    """trainer.objective=reward: training on a score, see training/reward.py.

    samples: sentences of each image, of at most max_length words; search: sample draws them, beam
    takes the beams of a beam search. cider, bleu, meteor: weights of CIDEr-D, BLEU-4 and METEOR-py
    against the training references, whose document frequencies CIDEr-D takes; eos:
    whether `<eos>` is a word of sentences and references. baseline: others (the mean reward of the
    image's other samples) or greedy (the reward of its greedy sentence); normalise divides the
    advantages by their deviation over the batch. cross_entropy: the share of the references'
    cross-entropy in the loss.
    """

    group: ClassVar[str] = "reward"

    samples: int = setting(5, COUNT)
    search: str = setting("sample", Choice(SEARCHES))
    cider: float = setting(1.0, NOT_NEGATIVE)
    bleu: float = setting(0.0, NOT_NEGATIVE)
    meteor: float = setting(0.0, NOT_NEGATIVE)
    eos: bool = True
    baseline: str = setting("others", Choice(BASELINES))
    normalise: bool = False
    cross_entropy: float = setting(0.0, RATE)
    max_length: int = setting(30, COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cider + self.bleu + self.meteor == 0:
            raise ConfigError(
                "one of reward.cider, reward.bleu and reward.meteor must be greater than 0, got 0 "
                "for all"
            )
        if self.baseline == "others" and self.samples < 2:
            raise ConfigError(
                "reward.baseline=others, the mean of an image's other samples, needs "
                f"reward.samples of 2 or more, got {self.samples}; take reward.baseline=greedy"
            )


@dataclass
class ReplicasConfig(Checked):
    """What differs among the models of trainer.replicas=K: lists of K values.

    null leaves a setting as it is for all of them; the seeds are then seed, seed + 1, ..., and the
    order of the batches is one for all, which order_seed changes. Only models that attend have
    attention_dropout and region_dropout.
    """

    group: ClassVar[str] = "replicas"

    seed: list[int] | None = setting(None, SEED)
    order_seed: list[int] | None = setting(None, SEED)
    lr: list[float] | None = setting(None, POSITIVE)
    weight_decay: list[float] | None = setting(None, NOT_NEGATIVE)
    clip_norm: list[float] | None = setting(None, POSITIVE)
    clip_value: list[float] | None = setting(None, POSITIVE)
    input_dropout: list[float] | None = setting(None, RATE)
    output_dropout: list[float] | None = setting(None, RATE)
    layer_dropout: list[float] | None = setting(None, RATE)
    embedding_dropout: list[float] | None = setting(None, RATE)
    recurrent_dropout: list[float] | None = setting(None, RATE)
    feature_dropout: list[float] | None = setting(None, RATE)
    attention_dropout: list[float] | None = setting(None, RATE)
    region_dropout: list[float] | None = setting(None, RATE)

    def given(self) -> dict[str, list[Any]]:
        """The lists that are not null."""
        return {key: values for key, values in vars(self).items() if values is not None}


@dataclass
class TrainConfig(RunConfig):
    """scripts/train.py. `run_dir` keeps everything of the run; `resume` continues what is there.

    sweep_dir: with -m, the folder of all runs; given again, the sweep is resumed. init_from: a
    checkpoint, run's folder or model folder of the same vocabulary, whose weights a new run starts
    from, with a fresh optimiser.
    """

    name: str = setting(MISSING, PATH)
    seed: int = setting(0, SEED)
    run_dir: str = setting(MISSING, PATH)
    sweep_dir: str = setting("", TEXT)
    resume: bool = False
    init_from: str | None = setting(None, PATH)
    data: Any = MISSING
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    encoder: EncoderConfig = MISSING
    rnn: RnnConfig = field(default_factory=RnnConfig)
    model: ModelConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    reward: RewardConfig = field(default_factory=RewardConfig)
    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    generation: GenerationConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_text()
        self._check_attention()
        self._check_objective()
        self._check_scheduled_sampling()
        self._check_replicas()
        trained = self.encoder.train_from is not None
        if trained and self.model.feature_norm == "standardise" and self.init_from is None:
            raise ConfigError(
                "model.feature_norm=standardise needs features that stay as they are, but "
                f"encoder.train_from={self.encoder.train_from} trains the encoder; take none or "
                "l2, or the statistics of a trained captioner (init_from=CHECKPOINT)"
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

    def _check_objective(self) -> None:
        """What sentences that are drawn and scored need, and cannot be with."""
        if self.trainer.objective != "reward":
            return
        if isinstance(self.data, TextData):
            raise ConfigError("trainer.objective=reward scores captions: text has no references")
        needed = {"batch_by": "picture", "label_smoothing": 0, "replicas": 1}
        for key, value in needed.items():
            if getattr(self.trainer, key) != value:
                raise ConfigError(
                    f"trainer.objective=reward needs trainer.{key}={value}, got "
                    f"{getattr(self.trainer, key)}"
                )
        if self.init_from is None and self.reward.cross_entropy == 0:
            raise ConfigError(
                "trainer.objective=reward learns from captions that the model writes already: give "
                "init_from=CHECKPOINT, or a share reward.cross_entropy"
            )
        if self.trainer.graph == "on":
            raise ConfigError(
                "trainer.graph=on cannot be with trainer.objective=reward: how long a drawn "
                "sentence is, is known on the host"
            )

    def _check_scheduled_sampling(self) -> None:
        """What training on the model's own words cannot be with."""
        asked = f"trainer.scheduled_sampling={self.trainer.scheduled_sampling}"
        if self.trainer.scheduled_sampling == 0:
            return
        if isinstance(self.data, TextData):
            raise ConfigError(f"{asked} draws the words of captions: for text it must be 0")
        if self.trainer.objective == "reward":
            raise ConfigError(
                f"{asked} cannot be with trainer.objective=reward, whose captions are all drawn"
            )
        if self.trainer.replicas > 1:
            raise ConfigError(
                f"{asked} draws from a generator that all replicas share; trainer.replicas must "
                f"be 1, got {self.trainer.replicas}"
            )
        if self.trainer.graph == "on":
            raise ConfigError(
                f"trainer.graph=on cannot be with {asked}: a captured step reads the captions as "
                "they lie on the device"
            )

    def _check_replicas(self) -> None:
        """As many values as replicas, and the same images' features for all of them."""
        count = self.trainer.replicas
        for key, values in self.replicas.given().items():
            if count == 1:
                raise ConfigError(f"replicas.{key}={values} is of trainer.replicas above 1, got 1")
            if len(values) != count:
                raise ConfigError(
                    f"replicas.{key} must have a value for each of trainer.replicas={count}, got "
                    f"{len(values)}"
                )
            if key.endswith("_dropout") and not hasattr(self.model, key):
                raise ConfigError(
                    f"replicas.{key} is nothing that model={self.model.kind} has: it attends to no "
                    "regions"
                )
        if count > 1 and self.encoder.crop:
            raise ConfigError(
                f"encoder.crop={self.encoder.crop} would draw from a generator that all replicas "
                "share; trainer.replicas must be 1"
            )
        if count > 1 and self.encoder.unfreeze_epochs is not None:
            raise ConfigError(
                f"encoder.unfreeze_epochs={self.encoder.unfreeze_epochs} changes what is trained "
                "while replicas compute theirs together; trainer.replicas must be 1"
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
        for group, keys in _OF_TEXT.items():
            for key in keys:
                value = getattr(getattr(self, group), key)
                if value and not text:
                    raise ConfigError(
                        f"{group}.{key} is a setting of texts alone: with data.kind="
                        f"{self.data.kind} it must be {type(value)()}, got {value}"
                    )
        pairs = isinstance(self.data, TextData) and self.data.unit == "bpe"
        if self.vocabulary.size is not None and not pairs:
            raise ConfigError(
                f"vocabulary.size={self.vocabulary.size} is of texts with data.unit=bpe alone"
            )
        if text and self.trainer.best_metric not in TEXT_METRICS:
            raise ConfigError(
                f"trainer.best_metric must be one of {', '.join(TEXT_METRICS)} for text, got "
                f"{self.trainer.best_metric!r}"
            )


@dataclass
class ReplicasLauncherConfig(Checked):
    """hydra/launcher=replicas: runs of a sweep that differ in nothing but what ReplicasConfig lists
    train together in one process, as replicas; the others one after another.

    most: how many train at a time.
    """

    group: ClassVar[str] = "hydra.launcher"

    _target_: str = "hydra_plugins.captioner_launcher.ReplicasLauncher"
    most: int = setting(8, Range(1, 1000))


@dataclass
class GridSweepConfig(Checked):
    """hydra/sweeper=grid: every combination of the values that are given with commas.

    max_batch_size: how many runs are launched before the first of them are waited for (null: all);
    params: keys and values as on the command line, for a sweep that is written down.
    """

    group: ClassVar[str] = "hydra.sweeper"

    _target_: str = "hydra_plugins.captioner_sweepers.GridSweeper"
    max_batch_size: int | None = setting(None, COUNT)
    params: dict[str, str] | None = None


@dataclass
class StudySweepConfig(Checked):
    """hydra/sweeper=optuna: a stored Optuna study of trainer.best_metric; the extra [sweeps].

    n_trials: of the whole study, those of earlier processes among them; n_jobs: trials launched at
    once (null: as many as hydra/launcher=replicas trains at a time, with others one); storage: an
    Optuna storage (null: sqlite, study.db in the sweep's folder); study_name (null: the folder's
    name); sampler tpe or random; params: intervals and values as on the command line, for a search
    space that is written down.
    """

    group: ClassVar[str] = "hydra.sweeper"

    _target_: str = "hydra_plugins.captioner_sweepers.StudySweeper"
    n_trials: int = setting(20, COUNT)
    n_jobs: int | None = setting(None, COUNT)
    storage: str | None = setting(None, TEXT)
    study_name: str | None = setting(None, TEXT)
    sampler: str = setting("tpe", Choice(SAMPLERS))
    seed: int = setting(0, Range(0, 2_000_000))  # Optuna's are of 32 bits, and 1,000 a seed
    params: dict[str, str] | None = None
