"""Schemas of the encoder, of the language model and of generation."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from captioner.checks import each_in_range, in_range, one_of, positive
from captioner.errors import ConfigError

ENCODERS = ("torchvision", "timm", "efficientnet_lite", "plain", "features", "none")
READERS = ("auto", "pil", "torchvision")
VIEWS = ("original", "mirror")
CACHE_DTYPES = ("float32", "float16")
FEATURE_NORMS = ("standardise", "l2", "none")
JOINS = ("concat", "gate", "lstm")
RNN_KINDS = ("lstm", "gru", "rnn_tanh")
BACKENDS = ("auto", "reference", "torch", "fused", "plain", "persistent", "cluster")


@dataclass
class EncoderConfig:
    """The image encoder.

    kind: torchvision, timm, efficientnet_lite, plain (for small images), features (your own, in
    `path`), or none for a language model of text alone. weights: torchvision, timm or registry (the
    kind's own), random, or a file. output: pooled or grid, which grid_size pools to grid_size x
    grid_size regions. size: height and width in pixels; resize: the shorter of both before the
    centre crop, or squash for the whole image; null takes the network's own. train_from: a stage's
    name trains it and all after it with learning rate lr; null freezes the network and caches its
    features in cache_dir, batch_size images at a time, as cache_dtype: null becomes float16 for a
    grid and float32 for all else. views: what training sees of each image, original or also mirror;
    an epoch draws one for each caption (trainer.batch_by=picture: image), and everything but
    training takes the original. reader: pil; torchvision, which decodes,
    resizes and crops on the device and encodes in bfloat16; or auto, which logs its choice.
    workers: processes (torchvision: threads) that read images for a GPU; on a CPU each thread reads
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
    cache_dtype: str | None = None
    views: list[str] = field(default_factory=lambda: ["original"])
    batch_size: int = 32
    reader: str = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        one_of("encoder.kind", self.kind, ENCODERS)
        one_of("encoder.output", self.output, ("pooled", "grid"))
        one_of("encoder.reader", self.reader, READERS)
        if self.reader == "torchvision" and self.train_from is not None:
            raise ConfigError(
                "encoder.reader=torchvision reads for a frozen encoder's cache, but "
                f"encoder.train_from={self.train_from} trains it; take auto"
            )
        if self.resize not in (None, "squash") and not isinstance(self.resize, int):
            raise ConfigError(
                f"encoder.resize must be squash, a number of pixels or null, got {self.resize!r}"
            )
        each_in_range("encoder", self, "grid_size batch_size", 1)
        in_range("encoder.size", self.size, 16)
        positive("encoder.lr", self.lr)
        in_range("encoder.workers", self.workers, 0)
        if self.kind == "features" and not self.path:
            raise ConfigError("encoder.path must name your features (.npy or .safetensors)")
        self._check_views()
        if self.cache_dtype is None:  # a run's folder then says which it was
            cached = self.kind not in ("features", "none") and self.train_from is None
            self.cache_dtype = "float16" if cached and self.output == "grid" else "float32"
        one_of("encoder.cache_dtype", self.cache_dtype, CACHE_DTYPES)

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
class RnnConfig:
    """The recurrent layers: lstm, gru or rnn_tanh; variational_dropout keeps a sequence's mask."""

    kind: str = "lstm"
    variational_dropout: bool = False

    def __post_init__(self) -> None:
        one_of("rnn.kind", self.kind, RNN_KINDS)


@dataclass
class ModelConfig:
    """Show and Tell, and what all models have; initialisation as in `initialise`.

    The language model and how the image enters it. kind is the choice of the group (model=...).
    feature_norm auto is standardise for features that stay as they are, none for a trained encoder.
    """

    attends: ClassVar[bool] = False  # to the regions of a grid
    feedback: ClassVar[bool] = False  # of what a step attended to into the next

    kind: str = "show_and_tell"
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
        dropouts = "input_dropout output_dropout layer_dropout feature_dropout"
        each_in_range("model", self, "embedding_dim hidden_size num_layers", 1)
        each_in_range("model", self, dropouts, 0, 0.999)
        positive("model.init_scale", self.init_scale)
        one_of("model.feature_norm", self.feature_norm, ("auto", *FEATURE_NORMS))
        one_of("model.init", self.init, ("uniform", "xavier", "fan_in"))
        one_of("model.backend", self.backend, BACKENDS)
        if self.kind != type(self).kind:
            raise ConfigError(
                f"model.kind is {type(self).kind} here, got {self.kind!r}: choose another model "
                "with model=..."
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

    kind: str = MISSING
    attention_dim: int = 512
    attention_dropout: float = 0.0
    region_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("model.attention_dim", self.attention_dim, 1)
        each_in_range("model", self, "attention_dropout region_dropout", 0, 0.999)


@dataclass
class LayeredAttentionConfig(AttentionConfig):
    """Attention of every h_t at once, see models/layered_attention.py.

    heads of the attention, which divide attention_dim; join: concat, gate or lstm (a second LSTM).
    """

    kind: str = "layered_attention"
    heads: int = 8
    join: str = "concat"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("model.heads", self.heads, 1)
        one_of("model.join", self.join, JOINS)
        if self.attention_dim % self.heads:
            raise ConfigError(
                f"model.heads must divide model.attention_dim, got {self.heads} and "
                f"{self.attention_dim}"
            )


@dataclass
class LiteratureConfig(AttentionConfig):
    """What the attention models of the literature share: one layer, and additive attention."""

    kind: str = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers != 1:
            raise ConfigError(
                f"model.num_layers must be 1 for model={self.kind}, got {self.num_layers}"
            )


@dataclass
class AdaptiveAttentionConfig(LiteratureConfig):
    """Lu et al. 2017: a visual sentinel beside the regions, see models/adaptive_attention.py."""

    kind: str = "adaptive_attention"


@dataclass
class ShowAttendTellConfig(LiteratureConfig):
    """Xu et al. 2015, soft attention, see models/show_attend_tell.py; doubly_stochastic: lambda of
    the regulariser by which every region is looked at sometime."""

    feedback: ClassVar[bool] = True

    kind: str = "show_attend_tell"
    doubly_stochastic: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("model.doubly_stochastic", self.doubly_stochastic, 0)


@dataclass
class UpDownConfig(LiteratureConfig):
    """Anderson et al. 2018: one LSTM attends, another speaks, see models/up_down.py."""

    feedback: ClassVar[bool] = True

    kind: str = "up_down"


MODELS = (
    ModelConfig,
    LayeredAttentionConfig,
    AdaptiveAttentionConfig,
    ShowAttendTellConfig,
    UpDownConfig,
)


@dataclass
class GenerationConfig:
    """How captions are searched or drawn; see generation/. Lengths are in words.

    rerank=consensus takes, of all beams or samples, those that agree most with the others by
    CIDEr-D; document_frequencies: a saved table for it (null: all n-grams weigh the same).
    """

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
    rerank: str = "none"
    document_frequencies: str | None = None
    min_length: int = 1
    max_length: int = 30
    no_repeat_ngram: int = 0
    allow_unknown: bool = False
    batch_size: int = 100

    def __post_init__(self) -> None:
        one_of("generation.method", self.method, ("greedy", "beam", "sample"))
        one_of("generation.rerank", self.rerank, ("none", "consensus"))
        counts = "beam_size groups samples n_best max_length batch_size top_k"
        each_in_range("generation", self, counts, 1)
        each_in_range("generation", self, "diversity length_penalty min_length no_repeat_ngram", 0)
        positive("generation.temperature", self.temperature)
        positive("generation.top_p", self.top_p)
        in_range("generation.top_p", self.top_p, 0, 1)
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
