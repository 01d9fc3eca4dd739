"""What every test of a command needs: the log as it was before."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Hydra gives the root logger handlers that write where this test's output goes."""
    root, handlers, level = logging.root, [*logging.root.handlers], logging.root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
