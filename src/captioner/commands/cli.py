"""What every command does: compose, check, run; one clear sentence when something is wrong."""

import contextlib
import io
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioner.commands import table
from captioner.commands.failures import explain, located, one_sentence
from captioner.commands.help import help_text
from captioner.commands.outputs import refuse_overwriting
from captioner.commands.table import Command, Task
from captioner.config import GROUPS, parse, register_schemas
from captioner.errors import ConfigError
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


def _print_anything() -> None:
    """Let the terminal show what its encoding lacks, such as names that are no UTF-8, escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(name: str, command: Command | None = None) -> None:
    """Run a command of `table.COMMANDS`, or another, with configs/<name>.yaml and the overrides of
    the command line.

    Any error ends in a message on standard error and exit status 1, one in the configuration
    itself in status 2, an interruption in 130; never in a traceback, unless CAPTIONER_TRACEBACK=1.
    Of the processes that torchrun starts, where a command takes several, the first reads the
    command line and sends the configuration to the others; the first to fail says why.
    """
    command = command or table.COMMANDS[name]
    logging.raiseExceptions = False  # of a log on a full disk, which would print tracebacks
    _print_anything()
    with one_sentence(name):
        _require_working_directory()
        if launch.started_together() > 1 and not command.processes:
            launch.refuse(f"{name}.py")
        arguments = sys.argv[1:]
        if command.positional is not None:
            arguments = gather_list(arguments, command.positional)
        sys.argv[1:] = [quote(argument, command.literal) for argument in arguments]
        register_schemas()
        register_resolver()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
        with _joined() as world:
            if world.main:
                _lead(command, name, world)
            else:
                _follow(command.task, world)


def _require_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError("the working directory was removed; change to one that exists") from error


def _lead(command: Command, name: str, world: Any) -> None:
    """Read the command line, send the configuration to the other processes, run the task."""
    sent = False

    def checked(config: DictConfig) -> Any:
        nonlocal sent
        hydra_config = HydraConfig.get()
        in_sweep = hydra_config.mode is RunMode.MULTIRUN
        folder = OmegaConf.select(config, "run_dir")  # of a training run
        # Inside as well, because Hydra reports a task's errors itself; a sweep has to see them.
        with located(folder) if in_sweep else one_sentence(name, folder):
            settings = parse(config)
            sent = True
            threads = threads_in_sweep(hydra_config.launcher) if in_sweep else None
            return _begin(command.task, world.from_main(lambda: settings), threads)

    try:
        check_overrides(sys.argv[1:])
        if world.size > 1 and {"-m", "--multirun"} & set(sys.argv):
            raise ConfigError("torchrun trains one run; start a sweep (-m) without it")
        if {"-h", "--help"} & set(sys.argv[1:]):
            overrides = [one for one in sys.argv[1:] if not one.startswith("-")]
            print(help_text(name, overrides, about=command.about, configs=CONFIGS))
            return
        with _finite_defaults(), _mode_by_flag(sys.argv[1:]):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
    finally:
        if not sent:  # --help and the like, or an error in the configuration
            world.from_main(lambda: None)


@contextlib.contextmanager
def _finite_defaults() -> Iterator[None]:
    """ConfigError where a YAML names itself in its defaults list: Hydra would go round for ever."""
    try:
        yield
    except RecursionError as error:
        raise ConfigError("a YAML names itself in its defaults list, or another does") from error


# What can set hydra.mode without -m: an override, or YAMLs that are not the package's.
MAY_SET_MODE = re.compile(r"[+~]*hydra\.(mode|searchpath)\b|--config-|-c[pnd]\b")


@contextlib.contextmanager
def _mode_by_flag(arguments: Sequence[str]) -> Iterator[None]:
    """Where nothing sets hydra.mode, Hydra does not compose the whole configuration once more to
    find that out, a quarter of the time that a command takes to begin."""
    told = Hydra.get_mode

    def get_mode(*given: Any, **settings: Any) -> Any:
        files = CONFIGS.rglob("*.yaml")
        if any(map(MAY_SET_MODE.match, arguments)) or any(
            b"MULTIRUN" in file.read_bytes() for file in files
        ):
            return told(*given, **settings)
        return None

    Hydra.get_mode = get_mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = told  # type: ignore[method-assign]


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
    """Run the task and print the texts that it returns; ConfigError where it would overwrite."""
    refuse_overwriting(settings)
    result = (pkgutil.resolve_name(task) if isinstance(task, str) else task)(settings)
    texts = [result] if isinstance(result, str) else result
    for text in texts if isinstance(texts, Iterable) else ():
        print(text, flush=True)
    return result


def quote(argument: str, literal: Sequence[str] = ()) -> str:
    """A text for one of the keys `literal` in Hydra's quotes, so that nothing is interpolated.

    Quoted also: any value with "=" or beyond ASCII that is plainly a text, such as a path in a
    sweep's folder: Hydra's grammar has no such characters.
    """
    key, equals, text = argument.partition("=")
    plain = not argument.startswith("-") and not re.search(r"[\[({'\"]", text)
    foreign = "=" in text or (not text.isascii() and "," not in text)
    if not equals or not (key in literal or (plain and foreign)):
        return argument
    if re.fullmatch(r"(?s)(['\"]).*\1", text):
        return argument
    # Backslashes only escape before a quote, and there at the end of the text too.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"{key}='" + escaped.replace("${", "\\${") + "'"


def check_overrides(arguments: Sequence[str]) -> None:
    """ConfigError where an override uses a name of version 0.1, or is nothing that Hydra can read.

    Hydra's errors for one of the wrong grammar.
    """
    parser = OverridesParser.create()
    for one in arguments:
        if one.startswith("-") or not ("=" in one or one.startswith("~")):
            continue
        sentence = old_name(one)
        if sentence is not None:
            raise ConfigError(sentence)
        try:
            (parsed,) = parser.parse_overrides([one])
        except ValueError as error:  # an integer of thousands of digits
            raise ConfigError(f"{one[:40]}...: {error}") from error
        key, value = parsed.key_or_group, parsed.value()
        chooses = key in ("", "experiment", "hydra", *GROUPS) or "/" in key
        nothing = value is None and not parsed.is_delete()
        if chooses and (nothing or isinstance(value, int | float)):
            named = f"{key}= names one of its choices" if key else "a key stands before ="
            raise ConfigError(f"{one}: {named}, got {value!r}")


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
    running = Singleton._instances.pop(GlobalHydra, None)  # there may be one only
    try:
        check_overrides(overrides)
        directory = str(configs.resolve())
        with _finite_defaults(), hydra.initialize_config_dir(directory, version_base="1.3"):
            return parse(hydra.compose(name, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, name)) from error
    finally:
        if running is not None:
            Singleton._instances[GlobalHydra] = running
