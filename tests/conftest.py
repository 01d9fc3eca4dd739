"""What several tests need: the repository, its commands, the real data where it lies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_script() -> Run:
    """Run scripts/<name>.py with overrides in a folder and return what it printed."""

    def run(
        folder: Path, name: str, *overrides: str, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), *overrides],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """The real data set, or a skip that says where it was looked for."""
    root = Path(os.environ.get("CAPTIONER_FLICKR8K", REPOSITORY.parent / "shared" / "flickr8k"))
    if not root.is_dir():
        pytest.skip(f"Flickr8k is not at {root} (set CAPTIONER_FLICKR8K)")
    return root
