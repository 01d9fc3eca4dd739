"""Schemas of the scripts, one each; that of train.py is in training.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from captioner.checks import in_range, one_of, positive
from captioner.config.model import VIEWS, GenerationConfig
from captioner.config.trained import given_keys
from captioner.errors import ConfigError

METRICS = ("BLEU", "ROUGE-L", "CIDEr", "METEOR-py", "METEOR", "SPICE")
PROTOCOLS = ("coco", "neuraltalk")
_MIRROR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"


def checkpoint_paths(given: Any) -> list[Path]:
    """The files that checkpoint= names: one, or a list [a.pt,b.pt]; ConfigError otherwise."""
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str | Path) for name in names):
        raise ConfigError(f"checkpoint must be a file or a list of files, got {given!r}")
    return [Path(name) for name in names]


def check_views(views: list[str]) -> None:
    """ConfigError unless these are different views of an image, and at least one."""
    for view in views:
        one_of("views", view, VIEWS)
    if not views or len(set(views)) < len(views):
        raise ConfigError(f"views must name different views of an image, got [{', '.join(views)}]")


@dataclass
class RunConfig:
    """What every command has: torch threads (null: torch's own) and the device."""

    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        one_of("device", self.device.split(":")[0], ("auto", "cpu", "cuda"))
        in_range("threads", self.threads, 1)


@dataclass
class ScoringConfig(RunConfig):
    """How captions are scored. metrics: of evaluation.metrics.METRICS; METEOR and SPICE need Java.

    brevity_penalty null is the protocol's own; samples: of the bootstrap, 0 for none;
    document_frequencies: a saved table for CIDEr; report: images in report.html, 0 for none.
    """

    protocol: str = "coco"
    brevity_penalty: bool | None = None
    metrics: list[str] = field(default_factory=lambda: [*METRICS[:4]])
    samples: int = 1000
    document_frequencies: str | None = None
    report: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("protocol", self.protocol, PROTOCOLS)
        for name in self.metrics:
            one_of("metrics", name, METRICS)
        in_range("samples", self.samples, 0)
        in_range("report", self.report, 0)


@dataclass
class EvaluateConfig(ScoringConfig):
    """scripts/evaluate.py: checkpoints on a split, a results file, or human captions.

    checkpoint: one, or a list that captions together as an ensemble. data, generation: the (first)
    checkpoint's own, of which single keys can be given. views: of an image (original, mirror), over
    which probabilities are averaged. out: the folder of a checkpoint's scores, or the file of the
    others'; subset allows results for only some of the annotated images; human scores one reference
    against the others, of `references` or of a split of `data`. sanity adds baselines and warnings;
    full: that of the nearest training images even where their features have to be extracted first.
    leakage also compares all images with the training set's. A language model of text is scored on
    `split` of its data or of data=text (all: the whole of it); page: an HTML file with the losses
    of the first page_tokens tokens.
    """

    checkpoint: Any = None
    split: str = "dev"
    data: Any = None
    generation: Any = None
    views: list[str] = field(default_factory=lambda: ["original"])
    results: str | None = None
    references: str | None = None
    out: str | None = None
    subset: bool = False
    human: bool = False
    sanity: Any = True
    leakage: bool = False
    page: str | None = None
    page_tokens: int = 20000

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("page_tokens", self.page_tokens, 1)
        check_views(self.views)
        if not isinstance(self.sanity, bool) and self.sanity != "full":
            raise ConfigError(f"sanity must be true, false or full, got {self.sanity!r}")
        if self.human:
            if (given_keys(self.data) is not None) == (self.references is None):
                raise ConfigError("human=true needs data=..., or references=FILE, one of the two")
            return
        files = (self.results, self.references)
        if self.checkpoint is None and None in files:
            raise ConfigError(
                "evaluate.py needs checkpoint=FILE, or results=FILE and references=FILE together"
            )
        if self.checkpoint is not None and any(files):
            raise ConfigError("give evaluate.py either checkpoint=, or results= and references=")
        if self.checkpoint is not None:
            checkpoint_paths(self.checkpoint)


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
            raise ConfigError(f"report= compares two runs, got {len(self.runs)}")


@dataclass
class LeaderboardConfig:
    """scripts/leaderboard.py: the runs below `folders`, ranked.

    page: the HTML page (null: leaderboard.html in the first folder); out: a .csv or .json file.
    """

    folders: list[str] = field(default_factory=lambda: ["outputs"])
    page: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        if self.out is not None and not self.out.endswith((".csv", ".json")):
            raise ConfigError(f"out must end in .csv or .json, got {self.out!r}")


@dataclass
class CaptionConfig(RunConfig):
    """scripts/caption.py: `images` are files, folders or globs, separated by commas or a list.

    checkpoint: one, or a list that captions together. generation: the (first) checkpoint's own, of
    which single keys can be given. views: as in evaluate.py.
    """

    checkpoint: Any = MISSING
    images: Any = MISSING
    generation: Any = None
    views: list[str] = field(default_factory=lambda: ["original"])
    out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checkpoint_paths(self.checkpoint)
        check_views(self.views)


@dataclass
class AverageConfig:
    """scripts/average.py: the mean of several checkpoints' weights, as one checkpoint `out`."""

    checkpoint: Any = MISSING
    out: str = MISSING

    def __post_init__(self) -> None:
        if len(checkpoint_paths(self.checkpoint)) < 2:
            raise ConfigError("average.py needs two checkpoints or more: checkpoint=[a.pt,b.pt]")


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
class DemoConfig(RunConfig):
    """scripts/demo.py: a page on host:port (null: the first free one from 7860) to try checkpoints.

    checkpoint: one or a list; of captioners at most two, which are compared, of language models
    one. generation: the settings at first. max_mb: the largest image that may be uploaded.
    """

    checkpoint: Any = None
    host: str = "127.0.0.1"
    port: int | None = 7860
    max_mb: float = 10
    generation: GenerationConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("port", self.port, 1, 65535)
        positive("max_mb", self.max_mb)
        if not self.checkpoint:
            raise ConfigError(
                "the page needs a checkpoint: `make demo` trains one in minutes, then python "
                "scripts/demo.py checkpoint=outputs/demo/best.pt"
            )
        self.checkpoint = [str(path) for path in checkpoint_paths(self.checkpoint)]


@dataclass
class PrepareConfig:
    """scripts/prepare_flickr8k.py: where the data set is or shall be, and where it comes from.

    A sha256 given here is what the archive must have; without one the mirror's md5, or the sum
    recorded at the first download, is compared.
    """

    root: str = "data/flickr8k"
    download: bool = True
    images_url: str = f"{_MIRROR}/Flickr8k_Dataset.zip"
    text_url: str = f"{_MIRROR}/Flickr8k_text.zip"
    images_sha256: str | None = None
    text_sha256: str | None = None


@dataclass
class ExportConfig(RunConfig):
    """scripts/export.py: a checkpoint as a model folder to publish, or as one ONNX graph.

    overwrite: replaces an earlier export at `out`. folder: include_encoder puts a frozen encoder's
    weights into it that a package or a download has as well (others always are); scores: files or
    folders of evaluations for the card (null: those in the run's folder); license: of the weights.
    onnx: `generation` is the search in the graph; it must give the same captions as PyTorch on the
    first `pictures` of `split`, of the checkpoint's data or of `data`, or of `images` (files,
    folders, globs), in batches of `generation.batch_size`.
    """

    checkpoint: str = MISSING
    format: str = "folder"
    out: str = MISSING
    overwrite: bool = False
    include_encoder: bool = False
    scores: Any = None
    license: str = "other"
    generation: GenerationConfig = MISSING
    data: Any = None
    split: str = "dev"
    images: Any = None
    pictures: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("format", self.format, ("folder", "onnx"))
        in_range("pictures", self.pictures, 1)
        if self.format == "onnx" and self.generation.method == "sample":
            raise ConfigError("in an ONNX graph generation must be greedy or beam, got sample")
        if self.format == "onnx" and self.generation.groups > 1:
            groups = self.generation.groups
            raise ConfigError(f"in an ONNX graph generation.groups must be 1, got {groups}")
        if self.format == "onnx" and self.generation.rerank != "none":
            raise ConfigError(
                f"in an ONNX graph generation.rerank must be none, got {self.generation.rerank}"
            )
