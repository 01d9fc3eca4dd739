"""Models that leave the house: folders that load elsewhere, cards, ONNX files that are proved."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import captioner
from captioner.cli import compose_config
from captioner.commands import caption_files
from captioner.errors import ConfigError
from captioner.export_commands import export_folder
from captioner.generation import Caption
from captioner.pretrained import CaptionModel
from captioner.runs import build_trainer
from captioner.training.checkpoint import load_checkpoint

CONFIGS = Path(__file__).parents[1] / "configs"
Run = Callable[..., "subprocess.CompletedProcess[str]"]
SCENES = [
    "data.train=24", "data.dev=6", "data.test=2", "data.size=32", "vocabulary.min_count=1",
    "decoder.embedding_dim=16", "decoder.hidden_size=16", "trainer.epochs=2",
    "trainer.progress=false", "decode.max_length=8", "optimizer.lr=0.02",
]  # fmt: skip
FROZEN = [
    "encoder=torchvision", "encoder.name=squeezenet1_1", "encoder.weights=random",
    "encoder.size=32", "encoder.resize=squash", "decoder.tie_embeddings=true",
]  # fmt: skip
TRAINED = ["encoder.name=plain_small", "encoder.size=32", "encoder.grid_size=2"]


def train(folder: Path, *overrides: str) -> Path:
    places = [f"run_dir={folder}/run", f"data.root={folder}/scenes"]
    settings = [*places, f"encoder.cache_dir={folder}/cache", *SCENES, *overrides]
    build_trainer(compose_config("train", settings, configs=CONFIGS)).run()
    return folder / "run" / "best.pt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a tiny captioner whose encoder was trained with it."""
    return train(tmp_path_factory.mktemp("trained"), *TRAINED)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a tiny captioner on a frozen random network, its embeddings tied."""
    return train(tmp_path_factory.mktemp("frozen"), *FROZEN)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("the cat sat on the mat and saw the hat.\n" * 80)
    settings = [
        "data=text", "encoder=none", f"data.path={folder}/a.txt", f"data.cache_dir={folder}/text",
        f"run_dir={folder}/run", "vocabulary.min_count=1", "decoder.embedding_dim=8",
        "decoder.hidden_size=8", "trainer.batch_size=4", "trainer.window=16", "trainer.epochs=1",
        "trainer.best_metric=loss", "trainer.progress=false",
    ]  # fmt: skip
    build_trainer(compose_config("train", settings, configs=CONFIGS)).run()
    return folder / "run" / "best.pt"


def config(checkpoint: Path, out: Path, *overrides: str) -> Any:
    settings = [f"checkpoint={checkpoint}", f"out={out}", *overrides]
    return compose_config("export", settings, configs=CONFIGS)


def captions(model: Any, folder: Path, **options: Any) -> list[list[Caption]]:
    assert isinstance(model, CaptionModel)
    found = model.captions(folder, **options)
    assert isinstance(found[0], list)
    return found  # type: ignore[return-value]


def pictures(checkpoint: Path) -> Path:
    return checkpoint.parents[1] / "scenes" / "dev"


def scenes(checkpoint: Path) -> list[Path]:
    found = sorted((checkpoint.parents[1] / "scenes").rglob("*.png"))[:6]
    assert len(found) == 6
    return found


@pytest.mark.parametrize("which", ["trained", "frozen"])
def test_a_folder_captions_as_its_checkpoint_does(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(which)
    out = export_folder(config(checkpoint, tmp_path / "my_model"))
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "vocabulary.json", "config.json", "README.md",
    }  # fmt: skip
    shutil.move(out, tmp_path / "elsewhere")
    paths = [*map(str, scenes(checkpoint))]
    before, after = captioner.load(checkpoint, "cpu"), captioner.load(tmp_path / "elsewhere", "cpu")
    for options in ({}, {"beam_size": 3, "n_best": 2}):
        assert before.captions(paths, **options) == after.captions(paths, **options)
    expected = caption_files(
        compose_config(
            "caption",
            [f"checkpoint={checkpoint}", f"images={paths[0]}", "decode.beam_size=3"],
            configs=CONFIGS,
        )
    )
    # caption.py's searches are as long as its own default says, not as training's.
    longest = {"max_length": 30, "beam_size": 3, "n_best": 3}
    assert after.captions(paths[0], **longest) == next(iter(expected))[1]


def test_nothing_of_this_machine_leaves_it(frozen: Path, tmp_path: Path) -> None:
    out = export_folder(config(frozen, tmp_path / "my_model"))
    texts = [p.read_text() for p in out.iterdir() if p.suffix in (".json", ".md")]
    assert len(texts) == 3
    for text in texts:
        assert str(frozen.parents[1]) not in text and str(tmp_path) not in text
    assert b"pickle" not in (out / "model.safetensors").read_bytes()


def test_what_caption_takes_and_gives(trained: Path, tmp_path: Path) -> None:
    model = captioner.load(trained.parent, "cpu")  # a run's folder
    assert isinstance(model, CaptionModel)
    path = scenes(trained)[0]
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(path, folder / "a.png")
    text = model.caption(path)
    assert isinstance(text, str)
    assert model.caption(str(path)) == model.caption(Image.open(path)) == text
    assert model.caption(folder) == model.caption([path]) == [text]
    best, second = model.captions(path, beam_size=3, n_best=2)
    assert isinstance(best, Caption) and isinstance(second, Caption)
    assert best.log_prob >= second.log_prob and best.words
    for options, said in (
        ({"beamsize": 2}, "beam_size"),
        ({"beam_size": "many"}, "many"),
        ({"beam_size": 0}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            model.caption(path, **options)
    with pytest.raises(ConfigError, match="list is empty"):
        model.caption([])


def test_three_lines_in_a_fresh_process(trained: Path, tmp_path: Path) -> None:
    out = export_folder(config(trained, tmp_path / "my_model"))
    photo = scenes(trained)[0]
    lines = (
        "import captioner, sys; assert 'torch' not in sys.modules",
        f"model = captioner.load({out.name!r})",
        f"print(model.caption({str(photo)!r}))",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == captioner.load(trained, "cpu").caption(photo)


def test_weights_saved_on_another_device_load_here(trained: Path, tmp_path: Path) -> None:
    """A GPU's tensors say "cuda:0" in the file; here it is written so without a GPU."""
    whole = load_checkpoint(trained)
    cuda = {name: _says_cuda(tensor) for name, tensor in whole.model.items()}
    content = {"format": "captioner-checkpoint", "version": 1, "model": cuda, "texts": whole.texts}
    path = tmp_path / "best.pt"
    torch.save({**content, "scores": whole.scores, "training": None}, path)
    assert b"cuda:0" in path.read_bytes()
    photo = scenes(trained)[0]
    assert captioner.load(path, "cpu").caption(photo) == captioner.load(trained).caption(photo)


def _says_cuda(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose storage is saved with the location of a GPU's."""

    class Storage(torch.UntypedStorage):
        pass

    class OnCuda(torch.Tensor):
        pass

    return tensor
