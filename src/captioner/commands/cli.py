"""What every command does: compose, check, run; one clear sentence when something is wrong."""

import contextlib
import difflib
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from captioner.commands import table
from captioner.commands.help import help_text
from captioner.commands.table import Command, Task
from captioner.config import COMMANDS, GROUPS, known_keys, parse, register_schemas
from captioner.errors import CaptionerError, ConfigError
from captioner.runs.name import register_resolver
from captioner.runs.upgrade import old_name
from captioner.training import launch

log = logging.getLogger(__name__)
CONFIGS = Path(__file__).parents[1] / "configs"
# Hydra's own options that take the next argument.
WITH_VALUE = re.compile(
    "--(cfg|package|config-path|config-name|config-dir|experimental-rerun|info|shell-completion)"
    "|-(c|p|cp|cn|cd|i|sc)"
)


def run_command(name: str, command: Command | None = None) -> None:
    """Run a command of `table.COMMANDS`, or another, with configs/<name>.yaml and the overrides of
    the command line.

    An error of the user's ends in a message on standard error and exit status 1, one in the
    configuration itself in status 2, an interruption in 130; never in a traceback, unless
    CAPTIONER_TRACEBACK=1. Of the processes that torchrun starts, where a command takes several, the
    first reads the command line and sends the configuration to the others; the first to fail says
    why.
    """
    command = command or table.COMMANDS[name]
    task = command.task
    if launch.started_together() > 1 and not command.processes:
        launch.refuse(f"{name}.py")
    arguments = sys.argv[1:]
    if command.positional is not None:
        arguments = gather_list(arguments, command.positional)
    sys.argv[1:] = [quote(argument, command.literal) for argument in arguments]
    register_schemas()
    register_resolver()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting

    sent = False

    def checked(config: DictConfig) -> Any:
        nonlocal sent
        hydra_config = HydraConfig.get()
        in_sweep = hydra_config.mode is RunMode.MULTIRUN
        # Inside as well, because Hydra reports a task's errors itself; a sweep has to see them.
        with contextlib.nullcontext() if in_sweep else _one_sentence(name):
            settings = parse(config)
            sent = True
            threads = threads_in_sweep(hydra_config.launcher) if in_sweep else None
            return _begin(task, world.from_main(lambda: settings), threads)

    with _one_sentence(name), _joined() as world:
        if not world.main:
            _follow(task, world)
            return
        try:
            refuse_old_names(sys.argv[1:])
            if world.size > 1 and {"-m", "--multirun"} & set(sys.argv):
                raise ConfigError("torchrun trains one run; start a sweep (-m) without it")
            if {"-h", "--help"} & set(sys.argv[1:]):
                overrides = [one for one in sys.argv[1:] if not one.startswith("-")]
                print(help_text(name, overrides, about=command.about, configs=CONFIGS))
                return
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
        finally:
            if not sent:  # --help and the like, or an error in the configuration
                world.from_main(lambda: None)


class _Alone:
    """One process, which reads its command line without torch; several are a `World`."""

    rank, size, main = 0, 1, True

    def from_main(self, compute: Callable[[], Any]) -> Any:
        """What `compute` gives."""
        return compute()


@contextlib.contextmanager
def _joined() -> Iterator[Any]:
    """The processes that torchrun started, joined while the context is open; alone without it."""
    if launch.started_together() == 1:
        yield _Alone()
        return
    from captioner.training import distributed

    with distributed.joined() as world:
        yield world


def _follow(task: Task, world: Any) -> None:
    """What the other processes do: the same with the configuration that the first one read."""
    logging.basicConfig(level=logging.WARNING, format=f"process {world.rank}: %(message)s")
    settings = world.from_main(lambda: None)
    if settings is not None:
        _begin(task, settings)


def _begin(task: Task, settings: Any, threads: int | None = None) -> Any:
    """Run the task with the threads that its settings ask for, otherwise `threads`."""
    threads = getattr(settings, "threads", None) or threads
    if threads:
        import torch

        torch.set_num_threads(threads)
    if launch.started_together() == 1:
        return run_task(task, settings)
    from captioner.training.distributed import failing_once

    with failing_once():
        return run_task(task, settings)


def run_task(task: Task, settings: Any) -> Any:
    """Run the task and print the texts that it returns."""
    result = (pkgutil.resolve_name(task) if isinstance(task, str) else task)(settings)
    texts = [result] if isinstance(result, str) else result
    for text in texts if isinstance(texts, Iterable) else ():
        print(text, flush=True)
    return result


def quote(argument: str, literal: Sequence[str] = ()) -> str:
    """A text for one of the keys `literal` in Hydra's quotes, so that nothing is interpolated.

    Quoted also: any value with "=" that is plainly a text, such as a path in a sweep's folder.
    """
    key, equals, text = argument.partition("=")
    plain_path = "=" in text and not argument.startswith("-") and not re.search(r"[\[({'\"]", text)
    if not equals or not (key in literal or plain_path):
        return argument
    if re.fullmatch(r"(?s)(['\"]).*\1", text):
        return argument
    # Backslashes only escape before a quote, and there at the end of the text too.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"{key}='" + escaped.replace("${", "\\${") + "'"


def refuse_old_names(arguments: Sequence[str]) -> None:
    """ConfigError naming the new key where an override uses one of version 0.1."""
    for one in arguments:
        sentence = old_name(one) if "=" in one or one.startswith("~") else None
        if sentence is not None:
            raise ConfigError(sentence)


def gather_list(arguments: Sequence[str], key: str) -> list[str]:
    """Arguments that are no override and no option, together as the list `key`, after the others.

    A path that exists is no override, whatever its name.
    """
    lists: list[str] = []
    others: list[str] = []
    for before, one in zip(["", *arguments], arguments, strict=False):
        override = "=" in one and not Path(one).exists()
        is_other = override or WITH_VALUE.fullmatch(before) or one.startswith(("-", "+", "~"))
        (others if is_other else lists).append(one)
    if not lists:
        return others
    return [*others, f"{key}=[" + ",".join(quote(f"x={one}", ("x",))[2:] for one in lists) + "]"]


def threads_in_sweep(launcher: Any) -> int | None:
    """A run's torch threads when runs of a sweep share the machine; None for all cores."""
    if "cpus_per_task" in launcher:  # submitit: what the run asks the cluster for
        return launcher.cpus_per_task or None
    jobs, cores = launcher.get("n_jobs", 1), os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    # As joblib counts: -1 is one job a core, -2 one fewer.
    return None if jobs == 1 else max(1, cores // (jobs if jobs > 0 else max(1, cores + 1 + jobs)))


def compose_config(name: str, overrides: Sequence[str] = (), *, configs: Path = CONFIGS) -> Any:
    """The checked configuration `configs/<name>.yaml`, also within a running Hydra job; ConfigError
    for an error in it."""
    register_schemas()
    register_resolver()
    refuse_old_names(overrides)
    running = Singleton._instances.pop(GlobalHydra, None)  # there may be one only
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(configs.resolve())):
            return parse(hydra.compose(name, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, name)) from error
    finally:
        if running is not None:
            Singleton._instances[GlobalHydra] = running


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turn an error of the user's into a message and an exit status."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        _stop(explain(error, name), status=2)
    except CaptionerError as error:
        _stop(str(error), status=2 if isinstance(error, ConfigError) else 1)
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
    if missing and missing.group(1).startswith("hydra/launcher/"):
        wanted = missing.group(1).rpartition("/")[2]
        return (
            f"there is no hydra/launcher {wanted!r} here; joblib, submitit_local and "
            "submitit_slurm come with pip install 'captioner[sweeps]'"
        )
    if missing:
        group, _, wanted = missing.group(1).rpartition("/")
        choices = [x.strip() for x in lines if re.fullmatch(r"\t\w+", x) and "_schema" not in x]
        near = difflib.get_close_matches(wanted, choices, n=1, cutoff=0.4)
        there = f"there is no {group or 'configuration'} {wanted!r}, but {', '.join(choices)}"
        return there + (f"; did you mean {near[0]!r}?" if near else "")
    # A file of the user's own: "override /decode: greedy" in its defaults, or a key "decoder:".
    named = re.search(r"(?:Could not override|full_key:|Key) '?/?([\w.]+)", text)
    if named and (sentence := old_name(named[1])) is not None:
        return sentence
    noise = ("To append", "object_type", "reference_type", "full_key", "Set the environment")
    kept = [x.strip() for x in lines if x.strip() and not x.strip().startswith(noise)]
    wrong = re.search(r"Could not override '([^']+)'", text)
    if wrong and (sentence := key_of_another(wrong[1])) is not None:
        return sentence
    key = nearest(wrong[1], [*known_keys(COMMANDS[name]), *GROUPS]) if wrong else None
    return "; ".join(dict.fromkeys(kept)) + (f"; did you mean {key!r}?" if key else "")


def key_of_another(wrong: str) -> str | None:
    """One sentence where a key is one of other choices of its group."""
    group, _, key = wrong.partition(".")
    choices = {kind: schema for kind, schema in GROUPS.get(group, {}).items() if kind != "base"}
    owners = [kind for kind, schema in choices.items() if key in known_keys(schema)]
    if not owners or len(owners) == len(choices):
        return None
    return f"{wrong} is a key of {group}={', '.join(owners)} alone"


def nearest(wrong: str, keys: Sequence[str]) -> str | None:
    """The key nearest to a wrong one: as a whole, or by its last part."""
    by_last = {key.split(".")[-1]: key for key in keys}
    last = difflib.get_close_matches(wrong.split(".")[-1], by_last, n=1)
    near = difflib.get_close_matches(wrong, keys, n=1, cutoff=0.6) or [by_last[k] for k in last]
    return near[0] if near and near[0] != wrong else None
