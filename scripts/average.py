"""The mean of the weights of several checkpoints: `average.py checkpoint=[a.pt,b.pt] out=c.pt`."""

from __future__ import annotations

from captioner.commands.cli import run_command
from captioner.config import AverageConfig, checkpoint_paths


def main(config: AverageConfig) -> str:
    """Write the averaged checkpoint, which every script reads like any other."""
    from captioner.training.averaging import average_checkpoints
    from captioner.training.checkpoint import save_checkpoint

    paths = checkpoint_paths(config.checkpoint)
    save_checkpoint(config.out, average_checkpoints(paths))
    return f"the mean of {len(paths)} checkpoints: {config.out}"


if __name__ == "__main__":
    run_command(main, __file__)
