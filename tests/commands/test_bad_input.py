"""What goes wrong ends in one sentence that names the thing, and nothing that was there is lost."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config
from PIL import Image

from captioner.build.checkpoint import load_captioner
from captioner.build.trainer import build_trainer
from captioner.commands.caption import caption_files, find_images
from captioner.errors import CheckpointError, ConfigError, DataError, ImageError
from captioner.training.checkpoint import load_checkpoint, save_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a tiny captioner on features of a frozen random network."""
    folder = tmp_path_factory.mktemp("bad")
    overrides = [
        f"run_dir={folder}/run",
        f"data.root={folder}/scenes",
        f"encoder.cache_dir={folder}/cache",
        "data.train=8",
        "data.dev=4",
        "data.test=4",
        "data.size=32",
        "vocabulary.min_count=1",
        "encoder=torchvision",
        "encoder.name=resnet18",
        "encoder.weights=random",
        "encoder.size=32",
        "encoder.resize=squash",
        "encoder.workers=0",
        "model.embedding_dim=8",
        "model.hidden_size=8",
        "trainer.epochs=1",
        "trainer.progress=false",
        "trainer.shown_pictures=1",
        "generation.max_length=5",
    ]
    build_trainer(compose_config("train", overrides, configs=CONFIGS)).run()
    return folder / "run" / "best.pt"


def caption(checkpoint: Path, images: Path | str) -> None:
    settings = [f"checkpoint={checkpoint}", f"images='{images}'", "generation.max_length=5"]
    list(caption_files(compose_config("caption", settings, configs=CONFIGS)))


def photo(folder: Path) -> Path:
    path = folder / "photo.jpg"
    Image.effect_noise((64, 48), 80).convert("RGB").save(path)
    return path


def test_a_truncated_photo_is_named(checkpoint: Path, tmp_path: Path) -> None:
    path = photo(tmp_path)
    caption(checkpoint, path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ImageError, match=r"photo\.jpg"):
        caption(checkpoint, path)


def test_photos_that_are_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.jpg"):
        caption(checkpoint, tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match="holds no images"):
        find_images(str(tmp_path))
    with pytest.raises(DataError, match="no file matches"):
        find_images(f"{tmp_path}/*.png")


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, kept: int) -> None:
    damaged = tmp_path / "best.pt"
    damaged.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"best\.pt is truncated"):
        load_captioner(damaged, device=CPU)


def test_a_checkpoint_of_another_encoder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(checkpoint)
    identity = json.loads(whole.texts["encoder"])
    identity["fingerprint"] = "0" * 64
    other = dataclasses.replace(whole, texts={**whole.texts, "encoder": json.dumps(identity)})
    save_checkpoint(tmp_path / "other.pt", other)
    with pytest.raises(CheckpointError, match=r"another encoder: it names frozen resnet18 0000"):
        load_captioner(tmp_path / "other.pt", device=CPU)


def test_a_checkpoint_whose_words_do_not_fit_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(checkpoint)
    words = json.loads(whole.texts["vocabulary"])
    words["words"], words["counts"] = words["words"][:-1], words["counts"][:-1]
    other = dataclasses.replace(whole, texts={**whole.texts, "vocabulary": json.dumps(words)})
    save_checkpoint(tmp_path / "other.pt", other)
    with pytest.raises(CheckpointError, match=r"embedding\.weight is \["):
        load_captioner(tmp_path / "other.pt", device=CPU)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config", lambda c: None, r"config must be an object, found None"),
        ("config", lambda c: {**c, "model": None}, r"config: model must be an object, found None"),
        ("config", lambda c: changed_in(c, "model", num_layers=100), "num_layers is 100, but"),
        ("config", lambda c: changed_in(c, "model", num_layers=10**5), "num_layers must be from 1"),
        ("config", lambda c: changed_in(c, "model", hidden_size=10**9), "does not fit this model"),
        ("config", lambda c: changed_in(c, "model", num_layers=1.5), "num_layers must be a whole"),
        ("config", lambda c: changed_in(c, "model", kind=["x"]), "kind must be one of show_and"),
        ("config", lambda c: changed_in(c, "encoder", views=5), "encoder: views must be a list"),
        ("config", lambda c: {**c, "seed": "a"}, "config: seed must be a whole number, found 'a'"),
        ("config", lambda c: {**c, "data": {"kind": "tv"}}, "data: kind must be one of scenes"),
        ("config", lambda c: nested(100), "config: .* is nested more than 50 deep"),
        ("config", lambda c: nested(900), "config"),
        ("encoder", lambda c: [c], "encoder must be an object with the keys feature_dim, kind"),
        ("encoder", lambda c: {"kind": "frozen"}, "encoder lacks 'feature_dim'"),
        ("encoder", lambda c: {**c, "kind": "other"}, "kind must be one of frozen, trained, feat"),
        ("encoder", lambda c: {"kind": "frozen", "feature_dim": 512}, "of another encoder"),
        ("encoder", lambda c: {**c, "feature_dim": 10**18}, "does not fit this model"),
        ("vocabulary", lambda c: {**c, "words": [5]}, r"vocabulary: words\[0\] must be text"),
        ("vocabulary", lambda c: {**c, "words": {"a": 1}}, "words must be a list"),
    ],
)
def test_a_checkpoint_with_other_texts_is_refused(
    checkpoint: Path, tmp_path: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    whole = load_checkpoint(checkpoint)
    text = json.dumps(change(json.loads(whole.texts[name])))
    other = dataclasses.replace(whole, texts={**whole.texts, name: text})
    save_checkpoint(tmp_path / "other.pt", other)
    with pytest.raises(CheckpointError, match=rf"other\.pt.*{message}"):
        load_captioner(tmp_path / "other.pt", device=CPU)


def changed_in(tree: dict[str, Any], group: str, **changes: Any) -> dict[str, Any]:
    return {**tree, group: {**tree[group], **changes}}


def nested(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(depth):
        tree = {"a": tree}
    return tree


def test_pictures_missing_from_a_split_are_counted(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    rows = [f"{i}.jpg,two dogs run" for i in range(10)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    photo(tmp_path / "Images").rename(tmp_path / "Images" / "3.jpg")
    overrides = [
        "data=folder",
        f"data.captions={tmp_path}/captions.csv",
        f"data.images={tmp_path}/Images",
        f"run_dir={tmp_path}/run",
    ]
    with pytest.raises(DataError, match=r"train.*[78] of 8 images are missing, the first"):
        build_trainer(compose_config("train", overrides, configs=CONFIGS))


def test_a_vocabulary_that_leaves_nothing(tmp_path: Path) -> None:
    overrides = [
        f"data.root={tmp_path}/scenes",
        "data.train=4",
        "data.dev=2",
        "data.test=2",
        "vocabulary.min_count=1000",
        f"run_dir={tmp_path}/run",
    ]
    with pytest.raises(DataError, match="min_count=1000"):
        build_trainer(compose_config("train", overrides, configs=CONFIGS))


def test_own_features_cannot_read_a_photo(checkpoint: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(checkpoint)
    tree = json.loads(whole.texts["config"])
    tree["encoder"] |= {"kind": "features", "path": "mine.npy"}
    texts = {
        **whole.texts,
        "config": json.dumps(tree),
        "encoder": json.dumps({"kind": "features", "feature_dim": 512}),
    }
    save_checkpoint(tmp_path / "own.pt", dataclasses.replace(whole, texts=texts))
    with pytest.raises(ConfigError, match=r"encoder\.kind=features"):
        caption(tmp_path / "own.pt", photo(tmp_path))


def test_the_command_line_prints_one_sentence(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "best.pt").write_bytes(b"no checkpoint")
    done = run_script(tmp_path, "caption", "checkpoint=best.pt", "images=photo.jpg")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "best.pt" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout
