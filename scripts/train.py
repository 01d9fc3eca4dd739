"""Train a captioner or a language model: `train.py experiment=nic_flickr8k data.root=...`."""

from __future__ import annotations

from captioner.commands.cli import run_command
from captioner.config import TrainConfig


def main(config: TrainConfig) -> float | None:
    """Train to the end, say where the result lies, and return the score for a sweep to compare."""
    from captioner.commands.train import train
    from captioner.training.distributed import world

    try:
        outcome = train(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; nothing finished is lost. Continue with the same command and "
            f"run_dir={config.run_dir} resume=true"
        ) from None
    if world().main:
        replica = "" if outcome.replica is None else f" of replica {outcome.replica}"
        where = f"epoch {outcome.epoch}{replica}; {config.run_dir}/best.pt"
        print(f"best {outcome.metric} {outcome.best:.4g} in {where}")
    return outcome.best


if __name__ == "__main__":
    run_command(main, __file__, processes=True)
