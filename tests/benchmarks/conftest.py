"""Processes of the benchmarks that need not import torch again."""

from __future__ import annotations

import multiprocessing

import pytest

from benchmarks import worker

PRELOADED = ["benchmarks.attention", "benchmarks.epoch", "benchmarks.gpu_epoch"]


@pytest.fixture(scope="session")
def _fork_server() -> None:
    """A process that has imported the suites, from which those of workers are forked."""
    from multiprocessing.forkserver import ensure_running

    multiprocessing.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", worker.python_path())  # it knows no sys.path of this process
        ensure_running()


@pytest.fixture
def forked_workers(_fork_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked. What they measure of memory is then not theirs alone."""
    monkeypatch.setattr(worker, "CONTEXT", multiprocessing.get_context("forkserver"))
