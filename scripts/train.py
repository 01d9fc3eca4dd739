"""Train a captioner or a language model: `train.py experiment=nic_flickr8k data.root=...`."""

from __future__ import annotations

from pathlib import Path

from captioner.cli import run_command
from captioner.config import TrainConfig
from captioner.runs import build_trainer


def main(config: TrainConfig) -> None:
    """Build everything, train to the end, and say where the result lies."""
    trainer = build_trainer(config)
    try:
        history = trainer.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; nothing finished is lost. Go on with the same command and "
            f"run_dir={config.run_dir} resume=true"
        ) from None
    if not trainer.world.main:
        return
    name = config.trainer.best_metric
    pick = min if trainer.settings.lower_is_better else max
    best = pick(history, key=lambda figures: figures[name])
    whose = f" of replica {best['replica']}" if "replica" in best else ""
    print(
        f"best {name} {best[name]:.4g} in epoch {best['epoch']:.0f}{whose}; "
        f"{config.run_dir}/best.pt"
    )


if __name__ == "__main__":
    configs = Path(__file__).parents[1] / "configs"
    run_command(main, name="train", configs=configs, processes=True)
