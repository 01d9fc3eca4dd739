"""The project's commands run within the test's own process, which has long imported torch."""

from __future__ import annotations

import functools
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from script_runner import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
COMMANDS = [path for path in SCRIPTS if "run_command" in path.read_text(encoding="utf-8")]


def call(path: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script; its exit status."""
    main = functools.partial(runpy.run_path, str(path), run_name="__main__")
    return begin(main, str(path), *arguments, monkeypatch=monkeypatch)


def begin(
    main: Callable[[], object], program: str, *arguments: str, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Run a program's main function as if it had been typed so; its exit status."""
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # a command sets it: put back after the test
    GlobalHydra.instance().clear()
    threads = torch.get_num_threads()  # which a command sets
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        torch.set_num_threads(threads)
    return 0
