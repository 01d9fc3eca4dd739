"""What `scripts/benchmark.py` measures: one module a suite, each side by side with its peer."""
