"""Runs the project's scripts, each in a process of its own that need not import torch again.

Standard input is a listening socket, of which several processes may be clients. A call is a
connection: a line of JSON with the script's file, its arguments, its folder, changes of its
environment, and the files for its output and its exit status. The answer is the process's number
as a line.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
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


def run(call: dict[str, Any], client: socket.socket) -> None:
    """The process of a script, which leads a process group and says so by its number."""
    os.setsid()
    client.sendall(f"{os.getpid()}\n".encode())
    client.close()
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    status = run_script(call)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def keep(client: socket.socket) -> None:
    """Start the script's process, wait for it, and write down how it ended."""
    with client.makefile("r") as lines:
        call = json.loads(lines.readline())
    child = os.fork()
    if child == 0:
        run(call, client)
    client.close()
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


def main(serves: int) -> None:
    """Import once, then answer calls as long as the process `serves` is there."""
    listening = socket.socket(fileno=0)
    listening.settimeout(1)
    preload()
    gc.freeze()  # what a child does not change it shares
    while _lives(serves):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        with contextlib.suppress(TimeoutError):
            client, _ = listening.accept()
            if os.fork() == 0:
                keep(client)
            client.close()
    Path(listening.getsockname()).unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]))
