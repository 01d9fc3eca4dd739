"""What scripts/benchmark.py and scripts/gpu_check.py measure; run from a checkout."""
