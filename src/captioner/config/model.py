"""Schemas of the encoder, of the language model and of generation."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from captioner.checks import FINITE, one_of
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
    TEXT,
    Checked,
    Choice,
    Range,
    setting,
)
from captioner.errors import ConfigError

ENCODERS = ("torchvision", "timm", "efficientnet_lite", "plain", "features", "none")
FROZEN_STAGES = ("cached", "computed")
BATCH_NORMS = ("frozen", "averaged")
SCHEDULES = ("constant", "cosine", "linear")
READERS = ("auto", "pil", "torchvision")
VIEWS = ("original", "mirror")
CACHE_DTYPES = ("float32", "float16")
FEATURE_NORMS = ("standardise", "l2", "none")
INITS = ("uniform", "xavier", "fan_in")
METHODS = ("greedy", "beam", "sample")
JOINS = ("concat", "gate", "lstm")
RNN_KINDS = ("lstm", "gru", "rnn_tanh", "layer_norm_lstm", "mogrifier_lstm")
SIDE = Range(16, 4096)  # of an image, in pixels; a blank one is encoded to measure an encoder
BACKENDS = ("auto", "reference", "torch", "fused", "plain", "persistent", "cluster")


@dataclass
class EncoderConfig(Checked):
    """The image encoder.

    kind: torchvision, timm, efficientnet_lite, plain (for small images), features (your own, in
    `path`), or none for a language model of text alone. weights: torchvision, timm or registry (the
    kind's own), random, or a file. init_from: a captioner that trained this encoder, whose weights
    take their place. output: pooled or grid, which grid_size pools to grid_size x grid_size
    regions. size: height and width in pixels; resize: the shorter of both before the centre crop,
    or squash for the whole image; null takes the network's own. train_from: a stage's name trains
    it and all after it with learning rate lr, weight_decay, schedule and warmup_steps (null: the
    optimiser's); unfreeze_epochs: the last of these stages from the start, and one more every so
    many epochs, the last first (null: all from the start). train_from null freezes the network and
    caches its features in cache_dir, batch_size images at a time, as cache_dtype: null becomes
    float16 for a grid and for frozen stages, and float32 for all else. frozen_stages: what the
    stages before train_from make of an image is cached as they are, or computed from the image at
    every step; batch_norm: those of the stages that are trained keep the statistics of the weights
    (frozen), or normalise by a batch's and average them (averaged); null is computed and averaged
    for kind plain and for random weights, otherwise cached and frozen. crop: training crops cached
    maps at random, by up to so many cells. views: what training sees of each image, original or
    also mirror; an epoch draws one for each caption (trainer.batch_by=picture: image), and
    everything but training takes the original. reader: pil; torchvision, which decodes, resizes and
    crops on the device and encodes in bfloat16; or auto, which logs its choice. workers: processes
    (torchvision: threads) that read images for a GPU; on a CPU each thread reads its own.
    """

    group: ClassVar[str] = "encoder"

    kind: str = setting(MISSING, Choice(ENCODERS))
    name: str = setting(MISSING, TEXT)
    weights: str = setting(MISSING, PATH)
    init_from: str | None = setting(None, PATH)
    output: str = setting("pooled", Choice(("pooled", "grid")))
    grid_size: int | None = setting(None, Range(1, 1024))
    size: int | None = setting(None, SIDE)
    resize: Any = None
    train_from: str | None = setting(None, TEXT)
    lr: float | None = setting(None, POSITIVE)
    weight_decay: float | None = setting(None, NOT_NEGATIVE)
    schedule: str | None = setting(None, Choice(SCHEDULES))
    warmup_steps: int | None = setting(None, COUNT_OR_NONE)
    unfreeze_epochs: int | None = setting(None, COUNT)
    frozen_stages: str | None = setting(None, Choice(FROZEN_STAGES))
    batch_norm: str | None = setting(None, Choice(BATCH_NORMS))
    crop: int = setting(0, Range(0, 64))
    path: str | None = setting(None, PATH)
    cache_dir: str = setting(".cache/features", PATH)
    cache_dtype: str | None = setting(None, Choice(CACHE_DTYPES))
    views: list[str] = field(default_factory=lambda: ["original"])
    batch_size: int = setting(32, COUNT)
    reader: str = setting("auto", Choice(READERS))
    workers: int = setting(2, PROCESSES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reader == "torchvision" and self.train_from is not None:
            raise ConfigError(
                "encoder.reader=torchvision reads for a frozen encoder's cache, but "
                f"encoder.train_from={self.train_from} trains it; take auto"
            )
        if self.resize not in (None, "squash") and not isinstance(self.resize, int):
            raise ConfigError(
                f"encoder.resize must be squash, a number of pixels or null, got {self.resize!r}"
            )
        if self.resize != "squash":
            SIDE.check("encoder.resize", self.resize)
        if self.unfreeze_epochs is not None and self.train_from is None:
            raise ConfigError(
                f"encoder.unfreeze_epochs={self.unfreeze_epochs} says when stages begin to be "
                "trained, which encoder.train_from must name"
            )
        if self.kind == "features" and not self.path:
            raise ConfigError("encoder.path must name your features (.npy or .safetensors)")
        if self.init_from is not None and self.kind in ("features", "none"):
            raise ConfigError(
                f"encoder.init_from={self.init_from} gives an encoder its weights, but there is "
                f"none: encoder.kind is {self.kind}"
            )
        self._check_views()
        self._take_defaults()
        if self.crop and not self.caches_stages:
            raise ConfigError(
                f"encoder.crop={self.crop} crops what frozen stages give: it needs "
                "encoder.train_from and encoder.frozen_stages=cached"
            )

    def _take_defaults(self) -> None:
        """What depends on other settings; a run's folder then says which it was."""
        if self.train_from is not None:
            from_scratch = self.kind == "plain" or self.weights == "random"
            self.frozen_stages = self.frozen_stages or ("computed" if from_scratch else "cached")
            self.batch_norm = self.batch_norm or ("averaged" if from_scratch else "frozen")
        if self.cache_dtype is None:
            half = self.output == "grid" if self.train_from is None else self.caches_stages
            cached = self.kind not in ("features", "none")
            self.cache_dtype = "float16" if cached and half else "float32"

    @property
    def caches_stages(self) -> bool:
        """Whether the output of frozen stages is to be cached."""
        return self.train_from is not None and self.frozen_stages == "cached"

    def _check_views(self) -> None:
        for view in self.views:
            one_of("encoder.views", view, VIEWS)
        if self.views[:1] != ["original"] or len(set(self.views)) < len(self.views):
            raise ConfigError(
                "encoder.views must begin with original and name no view twice, got "
                f"[{', '.join(self.views)}]"
            )
        if self.kind in ("features", "none") and len(self.views) > 1:
            raise ConfigError(
                f"encoder.views={self.views[1]} needs an encoder that computes it from the images, "
                f"but encoder.kind is {self.kind}"
            )


@dataclass
class RnnConfig(Checked):
    """The recurrent layers: lstm, gru, rnn_tanh, layer_norm_lstm or mogrifier_lstm, whose rounds
    are 5 unless given; variational_dropout keeps a sequence's mask."""

    group: ClassVar[str] = "rnn"

    kind: str = setting("lstm", Choice(RNN_KINDS))
    variational_dropout: bool = False
    rounds: int | None = setting(None, Range(1, 100))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds is not None and self.kind != "mogrifier_lstm":
            raise ConfigError(
                f"rnn.rounds={self.rounds} is of rnn.kind=mogrifier_lstm, got rnn.kind={self.kind}"
            )


@dataclass
class ModelConfig(Checked):
    """Show and Tell, and what all models have; initialisation as in `initialise`.

    The language model and how the image enters it. kind is the choice of the group (model=...).
    One mask a batch: embedding_dropout drops words of the vocabulary wherever they stand,
    recurrent_dropout weights from h to h (DropConnect). activation_regularisation and
    temporal_activation_regularisation: what a text's squared hidden states, and their squared
    changes from step to step, add to the loss in training (AR's alpha, TAR's beta). feature_norm
    auto is standardise for features that stay as they are, none for a trained encoder.
    """

    group: ClassVar[str] = "model"
    attends: ClassVar[bool] = False  # to the regions of a grid
    feedback: ClassVar[bool] = False  # of what a step attended to into the next

    kind: str = setting("show_and_tell", TEXT)
    embedding_dim: int = setting(512, COUNT)
    hidden_size: int = setting(512, COUNT)
    num_layers: int = setting(1, Range(1, 100))
    input_dropout: float = setting(0.0, RATE)
    output_dropout: float = setting(0.0, RATE)
    layer_dropout: float = setting(0.0, RATE)
    embedding_dropout: float = setting(0.0, RATE)
    recurrent_dropout: float = setting(0.0, RATE)
    feature_dropout: float = setting(0.0, RATE)
    activation_regularisation: float = setting(0.0, NOT_NEGATIVE)
    temporal_activation_regularisation: float = setting(0.0, NOT_NEGATIVE)
    feature_norm: str = setting("auto", Choice(("auto", *FEATURE_NORMS)))
    tie_embeddings: bool = False
    init: str = setting("uniform", Choice(INITS))
    init_scale: float = setting(0.08, POSITIVE)
    forget_bias: float = setting(1.0, Range(-FINITE))
    output_bias_from_counts: bool = True
    backend: str = setting("auto", Choice(BACKENDS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != type(self).kind:
            raise ConfigError(
                f"model.kind is {type(self).kind} here, got {self.kind!r}: choose another model "
                "with model=..."
            )
        if self.feedback and self.recurrent_dropout:
            raise ConfigError(
                f"model.recurrent_dropout must be 0 for model={self.kind}, got "
                f"{self.recurrent_dropout}: its LSTM goes step by step"
            )
        if self.tie_embeddings and self.embedding_dim != self.hidden_size:
            raise ConfigError(
                "model.tie_embeddings needs model.embedding_dim = model.hidden_size, got "
                f"{self.embedding_dim} and {self.hidden_size}"
            )


@dataclass
class AttentionConfig(ModelConfig):
    """What models have that attend to the regions of an image (encoder.output=grid).

    attention_dim: the width of keys; attention_dropout: of the weights; region_dropout: of the
    regions after their projection, where feature_dropout is before it.
    """

    attends: ClassVar[bool] = True

    kind: str = setting(MISSING, TEXT)
    attention_dim: int = setting(512, COUNT)
    attention_dropout: float = setting(0.0, RATE)
    region_dropout: float = setting(0.0, RATE)


@dataclass
class LayeredAttentionConfig(AttentionConfig):
    """Attention of every h_t at once, see models/layered_attention.py.

    heads of the attention, which divide attention_dim; join: concat, gate or lstm (a second LSTM).
    """

    kind: str = setting("layered_attention", TEXT)
    heads: int = setting(8, COUNT)
    join: str = setting("concat", Choice(JOINS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_dim % self.heads:
            raise ConfigError(
                f"model.heads must divide model.attention_dim, got {self.heads} and "
                f"{self.attention_dim}"
            )


@dataclass
class LiteratureConfig(AttentionConfig):
    """What the attention models of the literature share: one layer, and additive attention."""

    kind: str = setting(MISSING, TEXT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers != 1:
            raise ConfigError(
                f"model.num_layers must be 1 for model={self.kind}, got {self.num_layers}"
            )


@dataclass
class AdaptiveAttentionConfig(LiteratureConfig):
    """Lu et al. 2017: a visual sentinel beside the regions, see models/adaptive_attention.py."""

    kind: str = setting("adaptive_attention", TEXT)


@dataclass
class ShowAttendTellConfig(LiteratureConfig):
    """Xu et al. 2015, soft attention, see models/show_attend_tell.py; doubly_stochastic: lambda of
    the regulariser by which every region is looked at sometime."""

    feedback: ClassVar[bool] = True

    kind: str = setting("show_attend_tell", TEXT)
    doubly_stochastic: float = setting(1.0, NOT_NEGATIVE)


@dataclass
class UpDownConfig(LiteratureConfig):
    """Anderson et al. 2018: one LSTM attends, another speaks, see models/up_down.py."""

    feedback: ClassVar[bool] = True

    kind: str = setting("up_down", TEXT)


MODELS = (
    ModelConfig,
    LayeredAttentionConfig,
    AdaptiveAttentionConfig,
    ShowAttendTellConfig,
    UpDownConfig,
)


OF_TRAINING = "train"  # document_frequencies: the training captions'


@dataclass
class GenerationConfig(Checked):
    """How captions are searched or drawn; see generation/. Lengths are in words.

    rerank=consensus takes, of all beams or samples, those that agree most with the others by
    CIDEr-D; document_frequencies: for it, `train` for those of the training captions, or a saved
    table (null: all n-grams weigh the same).
    """

    group: ClassVar[str] = "generation"

    method: str = setting("beam", Choice(METHODS))
    beam_size: int = setting(3, COUNT)
    groups: int = setting(1, COUNT)
    diversity: float = setting(0.5, NOT_NEGATIVE)
    length_penalty: float = setting(0.0, Range(0, 10))
    samples: int = setting(5, COUNT)
    temperature: float = setting(1.0, POSITIVE)
    top_k: int | None = setting(None, COUNT)
    top_p: float | None = setting(None, PROBABILITY)
    typical_p: float | None = setting(None, PROBABILITY)
    seed: int = setting(0, SEED)
    n_best: int = setting(1, COUNT)
    rerank: str = setting("none", Choice(("none", "consensus")))
    document_frequencies: str | None = setting(None, PATH)
    min_length: int = setting(1, COUNT_OR_NONE)
    max_length: int = setting(30, COUNT)
    no_repeat_ngram: int = setting(0, COUNT_OR_NONE)
    allow_unknown: bool = False
    batch_size: int = setting(100, COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length > self.max_length:
            raise ConfigError(
                f"generation.min_length {self.min_length} exceeds "
                f"generation.max_length {self.max_length}"
            )
        if self.rerank == "consensus":
            self._check_consensus()
        if self.beam_size % self.groups:
            raise ConfigError(
                f"generation.groups must divide generation.beam_size, got {self.groups} and "
                f"{self.beam_size}"
            )

    def _check_consensus(self) -> None:
        """Of one or two sentences none agrees more than the other."""
        key = {"beam": "beam_size", "sample": "samples"}.get(self.method)
        if key is None or getattr(self, key) < 3:
            found = "" if key is None else f" and generation.{key}={getattr(self, key)}"
            raise ConfigError(
                "generation.rerank=consensus compares 3 captions or more of an image: it needs "
                "generation.method=beam or sample with as many, got "
                f"generation.method={self.method}{found}"
            )
