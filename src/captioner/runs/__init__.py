"""A training run's folder, its outcome and its name."""
