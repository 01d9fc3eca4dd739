"""Scenes that the package draws itself, with captions."""
