"""The commands that a model was trained with, as its checkpoint's configuration tells."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from captioner import config as schema
from captioner.build.checkpoint import stored_config
from captioner.commands.cli import compose_config
from captioner.errors import CheckpointError, ConfigError
from captioner.runs.folder import flat
from captioner.training.model_folder import open_checkpoint

# Keys of the machine, or said otherwise: the run's place, its data, what it began with.
LEFT_OUT = re.compile(
    r"name|run_dir|sweep_dir|resume|device|threads|trainer\.progress|encoder\.cache_dir|data\..*|"
    r"(encoder\.)?init_from"
)


def training_commands(tree: Mapping[str, Any]) -> list[str]:
    """Those of a captioner's run with the configuration `tree`, first those of the runs that it
    began with, as far as their files are there; of data files the names, runs lie below outputs/.

    A configuration keeps no experiment: every key is named that is not train.py's default.
    """
    sources = {"init_from": tree.get("init_from")}
    sources["encoder.init_from"] = tree["encoder"].get("init_from")
    begun = {key: Path(path) for key, path in sources.items() if path is not None}
    found, places = list[str](), list[str]()
    for key, path in begun.items():
        place = _below_outputs(path)
        with suppress(CheckpointError):
            earlier = stored_config(open_checkpoint(path), str(path))
            found += [one for one in training_commands(earlier) if one not in found]
            if (run := Path(earlier.get("run_dir", path)).name) not in place.parts:
                place = Path("outputs", run)  # it was copied to where it is
        places.append(f"{key}={place}")
    if tree.get("run_dir"):
        places.append(f"run_dir={_below_outputs(Path(tree['run_dir']))}")
    with suppress(ConfigError):  # of a version whose settings can no longer be composed
        found.append(shlex.join(["captioner", "train", *_changes(tree), *places]))
    return found


def _below_outputs(path: Path) -> Path:
    """A run's folder, or a file in it, wherever it lies."""
    return Path("outputs", *path.parts[-2:] if path.suffix else [path.name])


def _changes(tree: Mapping[str, Any]) -> Iterator[str]:
    """A run's data and model, and what else differs from the defaults."""
    now = flat(dict(tree))
    chosen = [*_data(tree["data"]), f"model={now.get('model.kind', schema.ModelConfig.kind)}"]
    yield from chosen
    for key, value in _composed(*chosen).items():
        if key in now and now[key] != value and not LEFT_OUT.fullmatch(key):
            yield f"{key}={_literal(now[key])}"


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    """The data set, and its settings that are not the defaults."""
    yield f"data={data['kind']}"
    kind = schema.GROUPS["data"][data["kind"]]
    defaults = {one.name: one.default for one in dataclasses.fields(kind)}
    for key, value in data.items():
        if key not in ("kind", "cache_dir") and value not in (None, defaults.get(key)):
            short = isinstance(value, str) and Path(value).is_absolute()
            yield f"data.{key}={_literal(f'data/{Path(value).name}' if short else value)}"


@cache
def _composed(*overrides: str) -> dict[str, Any]:
    """All keys of train.py with these overrides, as a checkpoint holds them."""
    tree = dataclasses.asdict(compose_config("train", overrides))
    return flat(json.loads(json.dumps(tree)))


def _literal(value: Any) -> str:
    """A value as it is typed: JSON but for quotes, which Hydra needs of few texts."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub(r'"([\w./+-]+)"', r"\1", text)
