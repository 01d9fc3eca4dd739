"""Fixtures of the tests of captured steps."""

from recorded_graphs import recorded_graphs

__all__ = ["recorded_graphs"]
