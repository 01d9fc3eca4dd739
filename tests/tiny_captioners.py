"""Captioners of drawn scenes that are trained within a second or two, for tests of what follows."""

from __future__ import annotations

from pathlib import Path

from composed import compose_config

from captioner.build.trainer import build_trainer

CONFIGS = Path(__file__).parents[1] / "configs"
SCENES = [
    "data.train=24",
    "data.dev=6",
    "data.test=2",
    "data.size=32",
    "vocabulary.min_count=1",
    "model.embedding_dim=16",
    "model.hidden_size=16",
    "trainer.epochs=2",
    "trainer.progress=false",
    "trainer.shown_pictures=1",
    "generation.max_length=8",
    "optimizer.lr=0.02",
]
FROZEN = [
    "encoder=torchvision",
    "encoder.name=squeezenet1_1",
    "encoder.weights=random",
    "encoder.size=32",
    "encoder.resize=squash",
    "model.tie_embeddings=true",
]
ATTENDING = [
    "model=layered_attention",
    "model.join=lstm",
    "model.heads=2",
    "model.attention_dim=8",
    "encoder=torchvision",
    "encoder.name=squeezenet1_1",
    "encoder.weights=random",
    "encoder.size=64",
    "encoder.resize=squash",
    "encoder.output=grid",
]
TRAINED = ["encoder.name=plain_small", "encoder.size=32", "encoder.grid_size=2"]


def train(folder: Path, *overrides: str) -> Path:
    places = [f"run_dir={folder}/run", f"data.root={folder}/scenes"]
    settings = [*places, f"encoder.cache_dir={folder}/cache", *SCENES, *overrides]
    build_trainer(compose_config("train", settings, configs=CONFIGS)).run()
    return folder / "run" / "best.pt"
