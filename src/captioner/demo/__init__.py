"""A web page to try checkpoints in: what it does in plain functions, its layout in layout.py."""
