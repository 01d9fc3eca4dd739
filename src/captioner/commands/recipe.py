"""What recipe.py does: training runs that begin where others ended, then the scores of all.

Every stage is a run of train.py in a process of its own, in a folder of its own below `out`, with
resume=true: what is finished is not repeated, what was stopped goes on. recipe.json holds, of each
stage, from which weights it began and how long it took.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from captioner import config as schema
from captioner.commands.cli import compose_config
from captioner.commands.scoring import checkpoint_card
from captioner.errors import CaptionerError, ConfigError
from captioner.evaluation.compare import compare_runs
from captioner.evaluation.records import RunRecord, load_record
from captioner.files import atomic_write, file_digest, read_json, write_json
from captioner.restore import restore
from captioner.runs.outcome import read_outcome

log = logging.getLogger(__name__)
PROGRESS = "recipe.json"
TABLE = "table.md"


@dataclass
class StageProgress:
    """Of a stage that was begun: the sha256 of what it began with, and its seconds."""

    input: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """A stage at its place below `out`."""

    name: str
    config: schema.StageConfig
    out: Path
    common: tuple[str, ...]  # overrides of all stages

    @property
    def folder(self) -> Path:
        """Of the training run."""
        return self.out / self.name

    @property
    def best(self) -> Path:
        """The checkpoint that other stages begin with, and that is scored."""
        return self.folder / "best.pt"

    @property
    def sources(self) -> dict[str, str]:
        """The stages that it begins with, by the key of train.py that takes their checkpoints."""
        given = {"init_from": self.config.init_from, "encoder.init_from": self.config.encoder}
        return {key: name for key, name in given.items() if name is not None}

    def source(self, name: str) -> Path:
        """The checkpoint of a stage that it begins with."""
        return self.out / name / self.best.name

    @property
    def input(self) -> str | None:
        """The sha256 of the checkpoints that it begins with."""
        files = map(self.source, dict.fromkeys(self.sources.values()))
        return ",".join(map(file_digest, files)) or None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        outcome = read_outcome(self.folder)
        return outcome is not None and outcome.finished

    @property
    def overrides(self) -> list[str]:
        """Those of train.py."""
        given = [f"experiment={self.config.experiment}", *self.common, *self.config.overrides]
        own = [f"run_dir={_literal(str(self.folder))}", f"seed={self.config.seed}", "resume=true"]
        own += [f"{key}={_literal(str(self.source(x)))}" for key, x in self.sources.items()]
        return [*given, *own]


def run(config: schema.RecipeConfig) -> Iterator[str]:
    """Train what is not trained yet, score what is not scored yet; the table, as it grows."""
    out, plan = Path(config.out), config.recipe
    common = (*data_overrides(config.data), *config.overrides)
    jobs = {name: Job(name, stage, out, common) for name, stage in plan.stages.items()}
    chosen = [job for name, job in jobs.items() if name in (config.stages or jobs)]
    names = {job.name for job in chosen}
    rows = [row for row in plan.rows if names.issuperset(row.stages)]
    for job in chosen:  # what is wrong anywhere is said before anything is trained
        compose_config("train", job.overrides)
    for row in rows:
        compose_config("evaluate", _evaluation(row, jobs, config))
    progress = Progress(out)
    _refuse_other_inputs(jobs, chosen, progress)
    left = Forecast([job for job in chosen if not job.finished])
    for number, job in enumerate(chosen, start=1):
        if not job.finished:
            log.info("stage %d of %d, %s: %s", number, len(chosen), job.name, left)
            _train(job, progress)
            left.done(job, progress.stages[job.name].seconds)
    for row in rows:
        _score(row, jobs, config)
    text = _table(rows, jobs, config, progress)
    with atomic_write(out / TABLE, "w") as handle:
        handle.write(text)
    yield text.rstrip()
    yield f"table: {out / TABLE}"


def data_overrides(data: Any) -> list[str]:
    """The keys of a data set as overrides: those that were given, or all of another set."""
    changes = schema.given_keys(data)
    own = [f"data={data.kind}"] if changes is None else []
    values = {f.name: getattr(data, f.name) for f in fields(data)} if changes is None else changes
    shown = {k: x for k, x in values.items() if x is not None and k != "kind"}
    return own + [f"data.{key}={_literal(value)}" for key, value in shown.items()]


def _literal(value: Any) -> str:
    """A value in Hydra's grammar, which reads JSON's texts, lists and numbers."""
    return json.dumps(value, ensure_ascii=False).replace("${", "\\${")


class Progress:
    """recipe.json."""

    def __init__(self, out: Path) -> None:
        self.path = out / PROGRESS
        self.stages: dict[str, StageProgress] = {}
        if self.path.exists():
            self.stages = restore(dict[str, StageProgress], read_json(self.path), str(self.path))

    def save(self, name: str, stage: StageProgress) -> None:
        """Keep what is known of a stage."""
        self.stages[name] = stage
        write_json(self.path, {key: vars(one) for key, one in self.stages.items()})


class Forecast:
    """The time that stages will take, as their own minutes say, scaled by those that are done."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.left = {job.name: 60 * job.config.minutes for job in jobs}
        self.expected = self.taken = 0.0

    def done(self, job: Job, seconds: float) -> None:
        """A stage took so long."""
        self.expected += self.left.pop(job.name)
        self.taken += seconds

    def __str__(self) -> str:
        scale = self.taken / self.expected if self.expected else 1.0
        own, all_left = next(iter(self.left.values())), sum(self.left.values())
        return f"about {scale * own / 60:.0f} min; all stages {scale * all_left / 60:.0f} min"


def _refuse_other_inputs(jobs: dict[str, Job], chosen: Sequence[Job], progress: Progress) -> None:
    """ConfigError where a stage began, or would begin, with other weights than there will be."""
    names = {job.name for job in chosen}
    for job in chosen:
        sources = [jobs[name] for name in dict.fromkeys(job.sources.values())]
        absent = [one for one in sources if not one.finished]
        for one in absent:
            if one.name not in names:
                raise ConfigError(
                    f"the stage {job.name} begins with {one.name}, which is not trained in "
                    f"{one.folder}; add it to stages="
                )
        began = progress.stages.get(job.name)
        if sources and began is not None and (absent or began.input != job.input):
            files = " or ".join(str(one.best) for one in sources)
            raise ConfigError(
                f"{job.folder} began with another {files} than the one that is there now; "
                f"remove {job.folder} and its entry in {progress.path} to train it again"
            )


def _train(job: Job, progress: Progress) -> None:
    stage = progress.stages.get(job.name, StageProgress())
    stage.input = job.input
    progress.save(job.name, stage)
    started = time.monotonic()
    try:
        _call("train", job.overrides, f"the stage {job.name}")
    finally:
        stage.seconds += time.monotonic() - started
        progress.save(job.name, stage)


def _call(command: str, overrides: Sequence[str], what: str) -> None:
    """Another command, in a process of its own; its messages are this one's."""
    status = subprocess.run([sys.executable, "-m", "captioner", command, *overrides]).returncode
    if status in (130, -2):
        raise KeyboardInterrupt(f"stopped in {what}; the same command goes on there")
    if status:
        raise CaptionerError(
            f"{what} ended with exit status {status}; why stands above. The same command goes on "
            "there"
        )


def _scores(row: schema.RowConfig, out: Path, split: str) -> Path:
    name = "_".join([*row.stages, *(row.views if row.views != ["original"] else []), split])
    changed = "_".join(f"{key}_{value}" for key, value in row.generation.items()).replace("/", "_")
    return out / "scores" / "_".join([name, *([changed] if changed else [])])


def _score(row: schema.RowConfig, jobs: dict[str, Job], config: schema.RecipeConfig) -> None:
    """Caption and score the split, unless that was done with the same checkpoints."""
    folder, paths = _scores(row, Path(config.out), config.split), [jobs[n].best for n in row.stages]
    if (folder / "scores.json").exists():
        scored = load_record(folder).scores["protocol"]
        if scored.get("checkpoint") == checkpoint_card(paths):
            return
    log.info("scoring %r", row.name)
    _call("evaluate", _evaluation(row, jobs, config), f"the scoring of {row.name!r}")


def _evaluation(
    row: schema.RowConfig, jobs: dict[str, Job], config: schema.RecipeConfig
) -> list[str]:
    """The overrides of evaluate.py that score a row."""
    given = ",".join(_literal(str(jobs[name].best)) for name in row.stages)
    return [
        f"checkpoint=[{given}]",
        f"views=[{','.join(row.views)}]",
        f"split={config.split}",
        f"out={_literal(str(_scores(row, Path(config.out), config.split)))}",
        "overwrite=true",
        "sanity=false",
        *(f"generation.{key}={_literal(value)}" for key, value in row.generation.items()),
        *data_overrides(config.data),
    ]


def _table(
    rows: Sequence[schema.RowConfig],
    jobs: dict[str, Job],
    config: schema.RecipeConfig,
    progress: Progress,
) -> str:
    """All rows in Markdown, each tested against the one before."""
    lines = [
        f"| {config.split} | BLEU-1/2/3/4 | BLEU-4, 95 % | CIDEr-D, 95 % | METEOR-py | "
        "CIDEr-D to the row before (p) | seeds | minutes trained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before: RunRecord | None = None
    for row in rows:
        record = load_record(_scores(row, Path(config.out), config.split))
        difference = ""
        if before is not None:
            one = compare_runs(before, record).differences["CIDEr-D"]
            difference = f"{one.difference:+.1f} ({one.p_randomisation:.3f})"
        seeds = ", ".join(str(jobs[name].config.seed) for name in row.stages)
        minutes = sum(progress.stages[n].seconds for n in _with_sources(row, jobs)) / 60
        cells = (row.name, *_figures(record), difference, seeds, f"{minutes:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
        before = record
    return "\n".join([*lines, ""])


def _figures(record: RunRecord) -> list[str]:
    scores, bounds = record.scores, record.scores.get("intervals", {})
    bleu = " / ".join(f"{scores[f'BLEU-{n}']:.1f}" for n in (1, 2, 3, 4))
    spans = [
        f"{scores[name]:.1f} [{bounds[name][0]:.1f}, {bounds[name][1]:.1f}]"
        for name in ("BLEU-4", "CIDEr-D")
    ]
    return [bleu, *spans, f"{scores['METEOR-py']:.1f}"]


def _with_sources(row: schema.RowConfig, jobs: dict[str, Job]) -> set[str]:
    """The row's stages, and all that they began with."""
    found, open_names = set[str](), [*row.stages]
    while open_names:
        name = open_names.pop()
        found.add(name)
        open_names += jobs[name].sources.values()
    return found
