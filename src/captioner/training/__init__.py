"""Loss, trainer, checkpoints."""
