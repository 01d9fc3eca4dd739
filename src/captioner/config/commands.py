"""Schemas of the scripts, one each; that of train.py is in training.py."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from captioner.checks import one_of
from captioner.config.model import VIEWS, GenerationConfig
from captioner.config.ranges import (
    COUNT,
    COUNT_OR_NONE,
    NOT_NEGATIVE,
    OUTPUT,
    PATH,
    POSITIVE,
    PROBABILITY,
    SEED,
    TEXT,
    THREADS,
    Checked,
    Choice,
    Range,
    setting,
)
from captioner.config.trained import given_keys
from captioner.errors import ConfigError

METRICS = ("BLEU", "ROUGE-L", "CIDEr", "METEOR-py", "METEOR", "SPICE")
PROTOCOLS = ("coco", "neuraltalk")
MOST_SAMPLES = 10_000_000  # of a bootstrap; each draws all images anew
_MIRROR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"


def check_names(key: str, given: Any) -> list[str | Path]:
    """What a key that takes one name or a list of names was given; ConfigError for all else."""
    names = list(given) if isinstance(given, list | tuple) else [given]
    if not names or not all(isinstance(name, str | Path) for name in names):
        raise ConfigError(f"{key} must be a file or a list of files, got {given!r}")
    for name in names:
        PATH.check(key, str(name))
    return names


def checkpoint_paths(given: Any) -> list[Path]:
    """The files that checkpoint= names: one, or a list [a.pt,b.pt]; ConfigError otherwise."""
    return [Path(name) for name in check_names("checkpoint", given)]


def check_views(views: list[str]) -> None:
    """ConfigError unless these are different views of an image, and at least one."""
    for view in views:
        one_of("views", view, VIEWS)
    if not views or len(set(views)) < len(views):
        raise ConfigError(f"views must name different views of an image, got [{', '.join(views)}]")


@dataclass
class RunConfig(Checked):
    """What every command has: torch threads (null: torch's own) and the device."""

    device: str = setting("auto", TEXT)
    threads: int | None = setting(None, THREADS)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, _, number = self.device.partition(":")
        one_of("device", kind, ("auto", "cpu", "cuda"))
        if kind != self.device and not (kind == "cuda" and number.isdecimal()):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")


@dataclass
class OutputConfig(Checked):
    """A command that writes files of the names it is given: never over what is there, inputs among
    it, unless `overwrite`."""

    overwrite: bool = False

    def outputs(self) -> dict[str, list[Path]]:
        """The files that would be written, by the key that names them."""
        keys = [item.name for item in fields(self) if item.metadata.get("rule") is OUTPUT]
        named = {key: getattr(self, key) for key in keys}
        return {key: [Path(name)] for key, name in named.items() if name is not None}


@dataclass
class ScoringConfig(RunConfig, OutputConfig):
    """How captions are scored. metrics: of evaluation.metrics.METRICS; METEOR and SPICE need Java.

    brevity_penalty null is the protocol's own; samples: of the bootstrap, 0 for none;
    document_frequencies: a saved table for CIDEr; report: images in report.html, 0 for none.
    """

    protocol: str = setting("coco", Choice(PROTOCOLS))
    brevity_penalty: bool | None = None
    metrics: list[str] = setting([*METRICS[:4]], Choice(METRICS))
    samples: int = setting(1000, Range(0, MOST_SAMPLES))
    document_frequencies: str | None = setting(None, PATH)
    report: int = setting(1000, COUNT_OR_NONE)


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
    of the first page_tokens tokens. dynamic: dynamic evaluation, the weights changed after every
    dynamic_window tokens, see validation.dynamic.
    """

    checkpoint: Any = None
    split: str = setting("dev", TEXT)
    data: Any = None
    generation: Any = None
    views: list[str] = field(default_factory=lambda: ["original"])
    results: str | None = setting(None, PATH)
    references: str | None = setting(None, PATH)
    out: str | None = setting(None, OUTPUT)
    subset: bool = False
    human: bool = False
    sanity: Any = True
    leakage: bool = False
    page: str | None = setting(None, OUTPUT)
    page_tokens: int = setting(20000, COUNT)
    dynamic: bool = False
    dynamic_window: int = setting(20, COUNT)
    dynamic_lr: float = setting(0.1, POSITIVE)
    dynamic_decay: float = setting(0.001, NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def outputs(self) -> dict[str, list[Path]]:
        """Of a checkpoint the files in the folder `out`, else the file `out` and those beside."""
        found = super().outputs()
        if self.out is None:
            return found
        out = Path(self.out)
        if self.checkpoint is not None:
            names = ("scores.json", "scores_images.json", "captions.json", "report.html")
            return {**found, "out": [out / name for name in names]}
        beside = [out.with_name(f"{out.stem}_images.json"), out.with_suffix(".html")]
        return {**found, "out": [out, *([] if self.human else beside)]}


@dataclass
class CompareConfig(OutputConfig):
    """scripts/compare.py: scored runs (folders or scores.json files); two are tested in pairs.

    metric decides which images are shown as most different; report writes a page for two runs.
    """

    runs: list[str] = setting(MISSING, PATH)
    metric: str = setting("CIDEr-D", TEXT)
    shown: int = setting(10, COUNT_OR_NONE)
    samples: int = setting(10000, Range(1, MOST_SAMPLES))
    seed: int = setting(0, SEED)
    out: str | None = setting(None, OUTPUT)
    report: str | None = setting(None, OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.runs) < 2:
            raise ConfigError(f"compare.py needs two runs or more, got {len(self.runs)}")
        if self.report is not None and len(self.runs) != 2:
            raise ConfigError(f"report= compares two runs, got {len(self.runs)}")


@dataclass
class LeaderboardConfig(OutputConfig):
    """scripts/leaderboard.py: the runs below `folders`, ranked.

    page: the HTML page (null: leaderboard.html in the first folder); out: a .csv or .json file.
    """

    folders: list[str] = setting(["outputs"], PATH)
    page: str | None = setting(None, OUTPUT)
    out: str | None = setting(None, OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and not self.out.endswith((".csv", ".json")):
            raise ConfigError(f"out must end in .csv or .json, got {self.out!r}")


@dataclass
class CaptionConfig(RunConfig, OutputConfig):
    """scripts/caption.py: `images` are files, folders or globs, separated by commas or a list.

    checkpoint: one, or a list that captions together. generation: the (first) checkpoint's own, of
    which single keys can be given. views: as in evaluate.py.
    """

    checkpoint: Any = MISSING
    images: Any = MISSING
    generation: Any = None
    views: list[str] = field(default_factory=lambda: ["original"])
    out: str | None = setting(None, OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        checkpoint_paths(self.checkpoint)
        check_names("images", self.images)
        check_views(self.views)


@dataclass
class AverageConfig(OutputConfig):
    """scripts/average.py: the mean of several checkpoints' weights, as one checkpoint `out`."""

    checkpoint: Any = MISSING
    out: str = setting(MISSING, OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(checkpoint_paths(self.checkpoint)) < 2:
            raise ConfigError("average.py needs two checkpoints or more: checkpoint=[a.pt,b.pt]")


@dataclass
class SampleConfig(RunConfig, OutputConfig):
    """scripts/sample.py: n texts of at most `length` tokens after `prompt`, up to the text `stop`.

    checkpoint: one, or a list, whose texts stand side by side. top_k, top_p, typical_p: draw among
    the likeliest or most typical only; no_repeat_ngram: no n-gram of so many tokens occurs twice in
    a text. chat: `prompt` and each line of the standard input are continued, after all that was
    written before. out: a JSON file of all texts.
    """

    checkpoint: Any = MISSING
    prompt: str = setting("", TEXT)
    length: int = setting(600, COUNT)
    n: int = setting(1, COUNT)
    temperature: float = setting(0.8, POSITIVE)
    top_k: int | None = setting(None, COUNT)
    top_p: float | None = setting(None, PROBABILITY)
    typical_p: float | None = setting(None, PROBABILITY)
    no_repeat_ngram: int = setting(0, COUNT_OR_NONE)
    seed: int = setting(0, SEED)
    stop: str | None = setting(None, TEXT)
    chat: bool = False
    out: str | None = setting(None, OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        voices = len(checkpoint_paths(self.checkpoint))
        if self.stop == "":
            raise ConfigError("stop must be a text of one character or more, or null")
        if self.chat and (self.n > 1 or voices > 1):
            raise ConfigError(
                f"chat=true continues one text of one checkpoint, got n={self.n} and "
                f"{voices} checkpoint{'s' if voices > 1 else ''}"
            )


@dataclass
class DemoConfig(RunConfig):
    """scripts/demo.py: a page on host:port (null: the first free one from 7860) to try checkpoints.

    checkpoint: one or a list; of captioners at most two, which are compared, of language models
    one. generation: the settings at first. max_mb: the largest image that may be uploaded.
    """

    checkpoint: Any = None
    host: str = setting("127.0.0.1", TEXT)
    port: int | None = setting(7860, Range(1, 65535))
    max_mb: float = setting(10, POSITIVE)
    generation: GenerationConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.host.strip():  # which would be every interface
            raise ConfigError("host must be an address or a name, such as 127.0.0.1, and is empty")
        if not self.checkpoint:
            raise ConfigError(
                "the page needs a checkpoint: `make demo` trains one in minutes, then python "
                "scripts/demo.py checkpoint=outputs/demo/best.pt"
            )
        self.checkpoint = [str(path) for path in checkpoint_paths(self.checkpoint)]


@dataclass
class PrepareConfig(Checked):
    """scripts/prepare_flickr8k.py: where the data set is or shall be, and where it comes from.

    A sha256 given here is what the archive must have; without one the mirror's md5, or the sum
    recorded at the first download, is compared. overwrite: files that are there, and not as in the
    archive, are replaced.
    """

    root: str = setting("data/flickr8k", PATH)
    download: bool = True
    overwrite: bool = False
    images_url: str = setting(f"{_MIRROR}/Flickr8k_Dataset.zip", TEXT)
    text_url: str = setting(f"{_MIRROR}/Flickr8k_text.zip", TEXT)
    images_sha256: str | None = setting(None, TEXT)
    text_sha256: str | None = setting(None, TEXT)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("images_sha256", "text_sha256"):
            given = getattr(self, key)
            if given is not None and not re.fullmatch("[0-9a-fA-F]{64}", given):
                raise ConfigError(f"{key} must be 64 hex digits, got {given!r}")


@dataclass
class ExportConfig(RunConfig, OutputConfig):
    """scripts/export.py: a checkpoint as a model folder to publish, or as one ONNX graph.

    overwrite: replaces an earlier export at `out`. folder: include_encoder puts a frozen encoder's
    weights into it that a package or a download has as well (others always are);
    include_frequencies what generation.document_frequencies=train counts; archive_mb also writes
    `out`.zip, one file of at most so many MB; scores: files or folders of evaluations for the card
    (null: those in the run's folder); license: of the weights.
    onnx: `generation` is the search in the graph; it must give the same captions as PyTorch on the
    first `pictures` of `split`, of the checkpoint's data or of `data`, or of `images` (files,
    folders, globs), in batches of `generation.batch_size`.
    """

    checkpoint: str = setting(MISSING, PATH)
    format: str = setting("folder", Choice(("folder", "onnx")))
    out: str = setting(MISSING, OUTPUT)
    include_encoder: bool = False
    include_frequencies: bool = False
    archive_mb: float | None = setting(None, POSITIVE)
    scores: Any = None
    license: str = setting("other", TEXT)
    generation: GenerationConfig = MISSING
    data: Any = None
    split: str = setting("dev", TEXT)
    images: Any = None
    pictures: int = setting(100, COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("scores", "images"):
            if getattr(self, key) is not None:
                check_names(key, getattr(self, key))
        if self.format == "onnx" and self.generation.method == "sample":
            raise ConfigError("in an ONNX graph generation must be greedy or beam, got sample")
        if self.format == "onnx" and self.generation.groups > 1:
            groups = self.generation.groups
            raise ConfigError(f"in an ONNX graph generation.groups must be 1, got {groups}")
        if self.format == "onnx" and self.generation.rerank != "none":
            raise ConfigError(
                f"in an ONNX graph generation.rerank must be none, got {self.generation.rerank}"
            )

    def outputs(self) -> dict[str, list[Path]]:
        """The graph and its check, or the folder as one file; the folder itself is looked after by
        `save_folder`, which knows whose it is."""
        out = Path(self.out)
        if self.format == "onnx":
            return {"out": [out, out.with_suffix(".check.json")]}
        return {} if self.archive_mb is None else {"out": [out.with_name(f"{out.name}.zip")]}
