"""The frame of every command: compose, check, run, and one clear sentence when something is wrong."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from captioner.config import COMMANDS, GROUPS, known_keys, parse, register_schemas
from captioner.errors import CaptionerError

log = logging.getLogger(__name__)


def run_command(task: Callable[[Any], None], *, name: str, configs: Path) -> None:
    """Run `task` with the configuration `configs/<name>.yaml` and the command line's overrides.

    What the user can mend ends in a message on standard error and exit status 1, what is wrong with
    the configuration itself in status 2, an interruption in 130; never in a traceback, unless
    CAPTIONER_TRACEBACK=1.
    """
    register_schemas()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting

    def checked(config: DictConfig) -> None:
        settings = parse(config)
        if getattr(settings, "threads", None):
            torch.set_num_threads(settings.threads)
        task(settings)

    main = hydra.main(version_base="1.3", config_path=str(configs), config_name=name)(checked)
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        _stop(explain(error, name), status=2)
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
    cause = error.__cause__ or error
    text = f"{error}\n{cause}" if cause is not error else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [x for x in lines if not x.startswith(("To append", "object_type", "reference_type"))]
    message = "; ".join(dict.fromkeys(lines))
    wrong = re.search(r"Could not (?:override|append to) '([^']+)'", text) or re.search(
        r"full_key: (\S+)", text
    )
    choice = re.search(r"Could not find '([^']+)'", text) or re.search(
        r"Could not load '([^']+)'", text
    )
    near: list[str] = []
    if choice:
        choices = [line.strip() for line in text.splitlines() if re.fullmatch(r"\t\S+", line)]
        near = difflib.get_close_matches(choice.group(1).split("/")[-1], choices, n=1, cutoff=0.4)
    elif wrong:
        keys = [*known_keys(COMMANDS[name]), *GROUPS]
        last = {key.split(".")[-1]: key for key in keys}
        near = difflib.get_close_matches(wrong.group(1), keys, n=1, cutoff=0.5) or [
            last[k] for k in difflib.get_close_matches(wrong.group(1).split(".")[-1], last, n=1)
        ]
        near = [key for key in near if key != wrong.group(1)]
    return f"{message}; did you mean {near[0]!r}?" if near else message
