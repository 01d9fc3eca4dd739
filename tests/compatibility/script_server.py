"""Runs the project's scripts, each in a process of its own that need not import torch again.

Reads a line of JSON a call from standard input: the script's file, its arguments, its folder and
the files for its output; writes its exit status as a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import traceback
from typing import Any


def run_script(call: dict[str, Any]) -> int:
    """Run the script as `python script arguments...` would; its exit status."""
    os.chdir(call["folder"])
    sys.argv = [call["script"], *call["arguments"]]
    with open(call["stdout"], "w") as out, open(call["stderr"], "w") as err:  # noqa: PTH123
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    try:
        runpy.run_path(call["script"], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Import once what takes long, then answer calls until standard input ends."""
    import torch.utils.tensorboard  # noqa: F401

    import captioner

    with contextlib.suppress(Exception):
        captioner.load("/nonexistent")  # imports what reads models
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = run_script(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
