"""Runs the project's scripts, each in a process of its own that need not import torch again.

Reads a line of JSON a call from standard input: the script's file, its arguments, its folder,
changes of its environment, and the files for its output and its exit status. Writes the process's
number as a line.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def run_script(call: dict[str, Any]) -> int:
    """Run the script as `python script arguments...` would; its exit status."""
    os.chdir(call["folder"])
    os.environ.update(call["environment"])
    tempfile.tempdir = None  # found anew, as TMPDIR says
    sys.argv = [call["script"], *call["arguments"]]
    for number in (1, 2):
        with open(call["output"][number - 1], "ab") as file:  # noqa: PTH123
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    try:
        runpy.run_path(call["script"], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(call: dict[str, Any]) -> None:
    """The process of a script, which leads a process group and says so by its number."""
    os.setsid()
    print(os.getpid(), flush=True)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    status = run_script(call)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def keep(call: dict[str, Any]) -> None:
    """Start the script's process, wait for it, and write down how it ended."""
    child = os.fork()
    if child == 0:
        run(call)
    _, status = os.waitpid(child, 0)
    unfinished = Path(call["status"] + ".tmp")
    unfinished.write_text(str(os.waitstatus_to_exitcode(status)))
    unfinished.replace(call["status"])
    os._exit(0)


def preload() -> None:
    """Import what takes long, as far as it is installed here; Hydra looks for its plugins."""
    import captioner

    commands = Path(captioner.__file__).parent / "commands"
    names = [f"captioner.commands.{module.stem}" for module in sorted(commands.glob("[a-z]*.py"))]
    libraries = ["torchvision.transforms.v2", "timm", "nltk.stem.snowball"]
    libraries += ["torch.utils.tensorboard", "captioner.ops"]
    libraries += ["torch._dynamo"]  # two seconds, where a script exports or takes a network of timm
    libraries += ["matplotlib.pyplot", "IPython.core.interactiveshell"]
    for name in (*libraries, *names):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(Exception):
        captioner.load("/nonexistent")  # imports what reads models
    with contextlib.suppress(Exception):
        cli = importlib.import_module("captioner.commands.cli")
        cli.compose_config("train", configs=Path(captioner.__file__).parents[2] / "configs")


def main() -> None:
    """Import once, then answer calls until standard input ends."""
    preload()
    for line in sys.stdin:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            keep(json.loads(line))
    with contextlib.suppress(ChildProcessError):
        while os.wait():
            pass


if __name__ == "__main__":
    main()
