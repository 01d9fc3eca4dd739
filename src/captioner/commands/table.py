"""Which commands there are, and how one is typed. Read without Hydra and torch."""

import contextlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What takes the checked configuration: a function, or "module:function", imported only then.
Task = Callable[[Any], Any] | str


@dataclass(frozen=True)
class Command:
    """A command: what it is for, what it runs, and how its arguments are read.

    The text, or the texts, that `task` returns are printed. The keys in `literal` take any text as
    it is, without Hydra's quotes. Arguments without a key become the list `positional`.
    `processes`: torchrun may start several.
    """

    about: str
    task: Task
    literal: tuple[str, ...] = ()
    positional: str | None = None
    processes: bool = False


# By name: that of scripts/<name>.py, of configs/<name>.yaml and of its schema in config.COMMANDS.
COMMANDS: dict[str, Command] = {
    "prepare_flickr8k": Command(
        "Bring Flickr8k into a folder, or check the one that is there",
        "captioner.commands.prepare:prepare",
    ),
    "train": Command(
        "Train a captioner or a language model", "captioner.commands.train:run", processes=True
    ),
    "evaluate": Command(
        "Score a checkpoint, COCO-format results, or human captions",
        "captioner.commands.evaluate:evaluate",
    ),
    "caption": Command("Caption photos", "captioner.commands.caption:caption"),
    "sample": Command(
        "Let a language model write", "captioner.commands.sample:sample", ("prompt", "stop")
    ),
    "demo": Command("Open a page to try models on", "captioner.commands.demo:demo"),
    "compare": Command(
        "Compare scored runs: two in pairs with tests, more in a table",
        "captioner.commands.compare:compare",
        positional="runs",
    ),
    "leaderboard": Command(
        "Rank the runs below a folder: a table, and a page with parallel coordinates",
        "captioner.commands.leaderboard:leaderboard",
        positional="folders",
    ),
    "average": Command(
        "Average the weights of several checkpoints", "captioner.commands.average:average"
    ),
    "recipe": Command(
        "Train in stages, each from the one before, and score them in one table",
        "captioner.commands.recipe:run",
        ("out",),
    ),
    "export": Command(
        "Export a trained model: a folder to publish, or an ONNX graph",
        "captioner.commands.export:export",
    ),
}


def typed(name: str, **values: object) -> str:
    """A command with keys and values, to be pasted where this process was started, as it was."""
    pairs = (shlex.quote(f"{key}={value}") for key, value in values.items())
    return " ".join([typed_name(name), *pairs])


def typed_name(name: str) -> str:
    """The beginning of a command: `captioner train`, `python scripts/train.py`, ..."""
    started = Path(sys.argv[0])
    script = started.with_name(f"{name}.py")
    if started.name == "captioner":
        program = "captioner" if _found_as("captioner", started) else typed_path(started)
        return f"{program} {name}"
    if started.suffix == ".py" and started.name != "__main__.py" and script.is_file():
        return f"{_python()} {typed_path(script)}"
    return f"{_python()} -m captioner {name}"


def typed_path(path: Path) -> str:
    """A path for the shell, relative where it lies below the current folder."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def as_typed(text: str) -> str:
    """A text whose commands, python scripts/NAME.py, read `captioner NAME` where that was typed."""
    if Path(sys.argv[0]).name not in ("captioner", "__main__.py"):
        return text
    known = "|".join(COMMANDS)
    return re.sub(rf"python scripts/({known})\.py", lambda found: typed_name(found[1]), text)


def _python() -> str:
    """The interpreter: `python` where that is it, otherwise its path."""
    this = Path(sys.executable)
    return "python" if _found_as("python", this) else typed_path(this)


def _found_as(name: str, program: Path) -> bool:
    """Whether the shell finds `program`, or what lies beside it, by `name` alone."""
    found = shutil.which(name)
    return found is not None and Path(found).parent.absolute() == program.parent.absolute()
