"""What average.py does: the mean of the weights of several checkpoints."""

from captioner import config as schema
from captioner.training.averaging import average_checkpoints
from captioner.training.checkpoint import save_checkpoint


def average(config: schema.AverageConfig) -> str:
    """Write the averaged checkpoint, which every command reads like any other."""
    paths = schema.checkpoint_paths(config.checkpoint)
    save_checkpoint(config.out, average_checkpoints(paths))
    return f"the mean of {len(paths)} checkpoints: {config.out}"
