"""The frame of every command: compose, check, run; one clear sentence when something is wrong."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from captioner.config import COMMANDS, GROUPS, known_keys, parse, register_schemas
from captioner.errors import CaptionerError, ConfigError
from captioner.training import distributed

log = logging.getLogger(__name__)


def run_command(
    task: Callable[[Any], None],
    *,
    name: str,
    configs: Path,
    literal: Sequence[str] = (),
    processes: bool = False,
) -> None:
    """Run `task` with the configuration `configs/<name>.yaml` and the command line's overrides.

    What the user can mend ends in a message on standard error and exit status 1, what is wrong with
    the configuration itself in status 2, an interruption in 130; never in a traceback, unless
    CAPTIONER_TRACEBACK=1. The keys in `literal` take any text as it is, without Hydra's quotes.
    Of the processes that torchrun starts, where a command takes such `processes`, the first reads
    the command line and hands the configuration on; the first to fail says why.
    """
    if distributed.started_together() > 1 and not processes:
        distributed.refuse(f"{name}.py")
    sys.argv = [sys.argv[0], *(_quoted(argument, literal) for argument in sys.argv[1:])]
    register_schemas()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting

    handed_on = False

    def checked(config: DictConfig) -> None:
        nonlocal handed_on
        with _one_sentence(name):  # inside, too: Hydra reports a task's errors in its own way
            settings = parse(config)
            if world.size > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
                raise ConfigError("torchrun trains one run; start a sweep (-m) without it")
            handed_on = True
            _begin(task, world.from_main(lambda: settings))

    with _one_sentence(name), distributed.joined() as world:
        if not world.main:
            _follow(task, world)
            return
        try:
            hydra.main(version_base="1.3", config_path=str(configs), config_name=name)(checked)()
        finally:
            if not handed_on:  # --help, or something is wrong with the configuration
                world.from_main(lambda: None)


def _follow(task: Callable[[Any], None], world: distributed.World) -> None:
    """What the other processes do: the same with the configuration that the first one read."""
    logging.basicConfig(level=logging.WARNING, format=f"process {world.rank}: %(message)s")
    settings = world.from_main(lambda: None)
    if settings is not None:
        _begin(task, settings)


def _begin(task: Callable[[Any], None], settings: Any) -> None:
    if getattr(settings, "threads", None):
        torch.set_num_threads(settings.threads)
    with distributed.failing_once():
        task(settings)


def _quoted(argument: str, keys: Sequence[str]) -> str:
    """A text for one of `keys` in the quotes that Hydra asks for, nothing in it interpolated."""
    key, equals, text = argument.partition("=")
    if key not in keys or not equals or re.fullmatch(r"(?s)(['\"]).*\1", text):
        return argument
    # Backslashes only escape before a quote, and there at the end of the text too.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"{key}='" + escaped.replace("${", "\\${") + "'"


def compose_config(name: str, overrides: Sequence[str] = (), *, configs: Path) -> Any:
    """The checked configuration `configs/<name>.yaml`, for notebooks and tests.

    Raises ConfigError for whatever is wrong with it.
    """
    register_schemas()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(configs.resolve())):
            return parse(hydra.compose(name, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, name)) from error


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turn what the user can mend into a message and an exit status."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        _stop(explain(error, name), status=2)
    except ConfigError as error:
        _stop(str(error), status=2)
    except CaptionerError as error:
        _stop(str(error), status=1)
    except OSError as error:
        _stop(f"{error.filename or 'input or output'}: {error.strerror or error}", status=1)
    except KeyboardInterrupt as error:
        _stop(str(error) or "interrupted", status=130)


def _stop(message: str, *, status: int) -> None:
    if os.environ.get("CAPTIONER_TRACEBACK") == "1":
        log.exception("traceback")
    print(f"error: {message}" if status != 130 else message, file=sys.stderr)
    sys.exit(status)


def explain(error: Exception, name: str) -> str:
    """Hydra's message in a sentence or two, with the nearest key or choice that exists."""
    text = "\n".join(str(one) for one in (error, error.__cause__) if one is not None)
    lines = text.splitlines()
    missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if missing:
        group, _, wanted = missing.group(1).rpartition("/")
        choices = [x.strip() for x in lines if re.fullmatch(r"\t\w+", x) and "_schema" not in x]
        near = difflib.get_close_matches(wanted, choices, n=1, cutoff=0.4)
        there = f"there is no {group or 'configuration'} {wanted!r}, but {', '.join(choices)}"
        return there + _did_you_mean(near)
    noise = ("To append", "object_type", "reference_type", "full_key", "Set the environment")
    kept = [x.strip() for x in lines if x.strip() and not x.strip().startswith(noise)]
    wrong = re.search(r"Could not override '([^']+)'", text)
    near = _nearest_key(wrong.group(1), name) if wrong else []
    return "; ".join(dict.fromkeys(kept)) + _did_you_mean(near)


def _nearest_key(wrong: str, name: str) -> list[str]:
    """The known key nearest to a wrong one: as a whole, or by its last part."""
    keys = [*known_keys(COMMANDS[name]), *GROUPS]
    by_last = {key.split(".")[-1]: key for key in keys}
    last = difflib.get_close_matches(wrong.split(".")[-1], by_last, n=1)
    near = difflib.get_close_matches(wrong, keys, n=1, cutoff=0.6) or [by_last[k] for k in last]
    return [key for key in near if key != wrong]


def _did_you_mean(near: list[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""
