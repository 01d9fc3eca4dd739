"""A captioner that has seen scenes for a moment looks at the objects that it describes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import compose_config

from captioner.build.attention import region_grid
from captioner.build.checkpoint import load_captioner
from captioner.build.trainer import build_trainer
from captioner.config import GenerationConfig
from captioner.data.images import load_image
from captioner.data.scenes.dataset import draw_scenes, load_scene_boxes, load_scene_truth
from captioner.inspection.attention_on_objects import attention_on_objects, more_than_chance

CONFIGS = Path(__file__).parents[2] / "configs"
CELLS, STRIDE = 8, 4  # of a side of 32 pixels


def cells(pixels: np.ndarray) -> np.ndarray:
    """Features [n, R, F] of images [n, 32, 32, 3]: a cell's pixels, its row and its column."""
    own = pixels.reshape(-1, CELLS, STRIDE, CELLS, STRIDE, 3).swapaxes(2, 3)
    own = own.reshape(len(pixels), CELLS**2, -1)
    rows, columns = np.divmod(np.arange(CELLS**2), CELLS)
    places = np.concatenate([np.eye(CELLS)[rows], np.eye(CELLS)[columns]], 1)
    tiled = np.broadcast_to(places, (len(pixels), *places.shape))
    return np.concatenate([own, tiled], 2).astype(np.float32)


@pytest.mark.slow
def test_attention_falls_on_the_object_that_is_described_more_often_than_chance(
    tmp_path: Path,
) -> None:
    data = draw_scenes(tmp_path / "scenes", train=800, dev=60, test=1, size=32)
    images = [image for split in data.splits.values() for image in split]
    pixels = np.stack([np.asarray(load_image(image.path), np.float32) / 255 for image in images])
    np.save(tmp_path / "cells.npy", cells(pixels))
    (tmp_path / "cells.names.json").write_text(json.dumps([image.name for image in images]))
    settings = [
        "experiment=scenes",
        "encoder=features",
        f"encoder.path={tmp_path}/cells.npy",
        "model=adaptive_attention",
        "model.attention_dim=48",
        "model.embedding_dim=48",
        "model.hidden_size=96",
        f"data.root={tmp_path}/scenes",
        "data.train=800",
        "data.dev=60",
        "data.test=1",
        "data.size=32",
        "optimizer.lr=6e-3",
        "trainer.epochs=1",
        "trainer.batch_size=10",
        "trainer.shown_pictures=0",
        "trainer.progress=false",
        f"run_dir={tmp_path}/run",
    ]
    (figures,) = build_trainer(compose_config("train", settings, configs=CONFIGS)).run()

    trained = load_captioner(tmp_path / "run/best.pt", device=torch.device("cpu"))
    dev = data.split("dev")
    features = trained.features.source(dev)(torch.arange(len(dev)))
    generator = trained.generator(GenerationConfig(method="greedy"))
    captions = generator.captions(features)
    grid = region_grid(trained.model, trained.features)
    looked = {
        image.name: ([word for word, _ in one[0].words], own[0])
        for image, one, own in zip(
            dev, captions, generator.attention_maps(features, captions, grid), strict=True
        )
    }
    folder = dev[0].path.parent
    truth, boxes = load_scene_truth(folder), load_scene_boxes(folder)
    own = more_than_chance(attention_on_objects(looked, truth, boxes))
    names = [image.name for image in dev]
    moved = {name: boxes[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}
    elsewhere = more_than_chance(attention_on_objects(looked, truth, moved))
    print(f"on the object {own:.3f}, where another image has it {elsewhere:.3f}")
    assert own > 0.9 and own > elsewhere + 0.2
    assert figures["attention_on_object"] == pytest.approx(100 * own)
