"""A page to try checkpoints on: what it does in plain functions, how it looks in layout.py."""
