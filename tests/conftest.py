"""What several tests need: the repository, its commands, the real data where it lies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from script_runner import REPOSITORY, Scripts

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: none is begun when there is nothing else left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_xdist_auto_num_workers() -> int:
    """A process more than there are cores: there is always one that waits for another."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (len(affinity(0)) if affinity else os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept for a user (METEOR's packed table) lies with the tests, for all processes."""
    folder = tmp_path_factory.getbasetemp()
    in_one = "PYTEST_XDIST_WORKER" in os.environ  # each process has a folder below that of all
    os.environ["CAPTIONER_CACHE"] = str((folder.parent if in_one else folder) / "user_cache")


@pytest.fixture(scope="session")
def scripts() -> Iterator[Scripts]:
    """The project's scripts, begun without importing torch again."""
    running = Scripts()
    yield running
    running.close()


@pytest.fixture(scope="session")
def run_script(scripts: Scripts) -> Run:
    """Run scripts/<name>.py with overrides in a folder and return what it printed."""
    return scripts.run


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """The real data set, or a skip that says where it was looked for."""
    root = Path(os.environ.get("CAPTIONER_FLICKR8K", REPOSITORY.parent / "shared" / "flickr8k"))
    if not root.is_dir():
        pytest.skip(f"Flickr8k is not at {root} (set CAPTIONER_FLICKR8K)")
    return root
