"""Small checkpoints for the page: two captioners of drawn scenes, of which the second attends to
regions, and a character model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from composed import compose_config

from captioner.build.trainer import build_trainer

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = "the page writes what it has read, and it has read this line many times\n"


@dataclass(frozen=True)
class Checkpoints:
    """Where they lie."""

    one: Path
    two: Path
    text: Path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Trained for a moment each."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "text.txt").write_text(TEXT * 200)
    common = ["trainer.epochs=1", "trainer.progress=false", "model.embedding_dim=16"]
    scenes = [
        *common,
        f"data.root={folder}/scenes",
        "data.train=32",
        "data.dev=4",
        "data.test=4",
        "data.size=32",
        "vocabulary.min_count=1",
        "model.hidden_size=16",
        "generation.max_length=4",
        # As good as untrained, with weights so large that image and seed make a difference.
        "model.init_scale=2",
        "model.output_bias_from_counts=false",
        "optimizer.lr=1e-6",
    ]
    text = [
        *common,
        "data=text",
        f"data.path={folder}/text.txt",
        f"data.cache_dir={folder}/cache",
        "encoder=none",
        "vocabulary.min_count=1",
        "model.hidden_size=64",
        "trainer.best_metric=loss",
        "trainer.batch_size=8",
        "trainer.window=50",
    ]
    attends = ["model=adaptive_attention", "model.attention_dim=16", "encoder.grid_size=null"]
    runs = {
        "one": [*scenes, "seed=1"],
        "two": [*scenes, *attends, "seed=2"],
        "text": text,
    }
    for name, settings in runs.items():
        overrides = [*settings, f"run_dir={folder / name}"]
        build_trainer(compose_config("train", overrides, configs=CONFIGS)).run()
    return Checkpoints(*(folder / name / "best.pt" for name in runs))
