"""Exported models: folders that load elsewhere, cards, ONNX files checked against PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config
from PIL import Image
from tiny_captioners import ATTENDING, CONFIGS, FROZEN, TRAINED, train

import captioner
from captioner.api import CaptionModel, TextModel
from captioner.build.trainer import build_trainer
from captioner.commands.caption import caption_files
from captioner.commands.export import export, export_folder, export_onnx
from captioner.commands.training_commands import LEFT_OUT, training_commands
from captioner.config import Flickr8kData
from captioner.errors import CaptionerError, CheckpointError, ConfigError, DataError
from captioner.export.card import TERMS
from captioner.export.onnx_check import Comparison
from captioner.inference.captions import Caption
from captioner.runs.folder import flat
from captioner.training.checkpoint import load_checkpoint, save_checkpoint
from captioner.training.model_folder import open_checkpoint, results_folder

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a tiny captioner whose encoder was trained with it."""
    return train(tmp_path_factory.mktemp("trained"), *TRAINED)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a tiny captioner on a frozen random network, its embeddings tied."""
    return train(tmp_path_factory.mktemp("frozen"), *FROZEN)


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a tiny captioner that attends to the grid of a frozen random network."""
    return train(tmp_path_factory.mktemp("attending"), *ATTENDING)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("the cat sat on the mat and saw the hat.\n" * 80)
    settings = [
        "data=text",
        "encoder=none",
        f"data.path={folder}/a.txt",
        f"data.cache_dir={folder}/text",
        f"run_dir={folder}/run",
        "vocabulary.min_count=1",
        "model.embedding_dim=8",
        "model.hidden_size=8",
        "trainer.batch_size=4",
        "trainer.window=16",
        "trainer.epochs=1",
        "trainer.best_metric=loss",
        "trainer.progress=false",
    ]
    build_trainer(compose_config("train", settings, configs=CONFIGS)).run()
    return folder / "run" / "best.pt"


def config(checkpoint: Path, out: Path, *overrides: str) -> Any:
    settings = [f"checkpoint={checkpoint}", f"out={out}", *overrides]
    return compose_config("export", settings, configs=CONFIGS)


def scenes(checkpoint: Path) -> list[Path]:
    found = sorted((checkpoint.parents[1] / "scenes").rglob("*.png"))[:6]
    assert len(found) == 6
    return found


@pytest.mark.parametrize("which", ["trained", "frozen", "attending"])
def test_a_folder_captions_as_its_checkpoint_does(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(which)
    out = export_folder(config(checkpoint, tmp_path / "my_model"))
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors",
        "vocabulary.json",
        "config.json",
        "README.md",
    }
    shutil.move(out, tmp_path / "elsewhere")
    paths = [*map(str, scenes(checkpoint))]
    before, after = captioner.load(checkpoint, "cpu"), captioner.load(tmp_path / "elsewhere", "cpu")
    for options in ({}, {"beam_size": 3, "n_best": 2}):
        assert before.captions(paths, **options) == after.captions(paths, **options)
    expected = caption_files(
        compose_config(
            "caption",
            [f"checkpoint={checkpoint}", f"images={paths[0]}", "generation.beam_size=3"],
            configs=CONFIGS,
        )
    )
    three = {"beam_size": 3, "n_best": 3}  # which caption.py has of its own
    assert after.captions(paths[0], **three) == next(iter(expected))[1]


def test_a_release_is_one_file_that_needs_no_data(
    attending: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, archive = tmp_path / "release" / "captioner", tmp_path / "release" / "captioner.zip"
    wanted = ["include_encoder=true", "include_frequencies=true"]
    with pytest.raises(DataError, match=r"captioner.zip would have \d\.\d MB, more than archive_"):
        export(config(attending, out, *wanted, "archive_mb=0.01"))
    assert not archive.exists()
    lines = export(config(attending, out, *wanted, "archive_mb=60", "overwrite=true"))
    assert lines[-1].startswith(f"{archive}: ")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    path = str(scenes(attending)[0])
    before = captioner.load(attending, "cpu")
    consensus = {"beam_size": 4, "rerank": "consensus", "document_frequencies": "train"}
    expected = [before.captions(path, **options) for options in ({}, consensus)]
    monkeypatch.setattr("captioner.build.checkpoint.read_data", None)  # there are no captions here
    after = captioner.load(tmp_path / "unpacked" / "captioner", "cpu")
    assert [after.captions(path, **options) for options in ({}, consensus)] == expected
    assert after.trained.training_frequencies == before.trained.training_frequencies
    table = tmp_path / "unpacked" / "captioner" / "document_frequencies.json"
    table.write_text(table.read_text().replace("1", "2", 1))
    with pytest.raises(CheckpointError, match=r"document_frequencies\.json is damaged"):
        captioner.load(table.parent, "cpu")


def test_the_card_names_commands_that_train_the_same(attending: Path, tmp_path: Path) -> None:
    """With what it began from, whose checkpoint is there; each is composed again."""
    begun = [*ATTENDING, "trainer.epochs=1", f"init_from={attending}", "seed=0", "model.heads=1"]
    later = tmp_path / "later" / "best.pt"
    train(tmp_path, *begun, f"run_dir={later.parent}")
    tree = json.loads(load_checkpoint(later).texts["config"])
    assert tree["run_dir"] == f"{tmp_path}/later"
    first, second = training_commands(tree)
    assert second.endswith("init_from=outputs/run/best.pt run_dir=outputs/later")
    assert str(tmp_path) not in first + second and "model.heads=1" in second
    for text, expected in ((first, attending), (second, later)):
        found = compose_config("train", shlex.split(text)[2:], configs=CONFIGS)
        trees = (dataclasses.asdict(found), json.loads(load_checkpoint(expected).texts["config"]))
        kept = [{k: x for k, x in flat(t).items() if not LEFT_OUT.fullmatch(k)} for t in trees]
        assert kept[0] == kept[1] and found.data.train == 24
    out = export_folder(config(later, tmp_path / "my_model"))
    assert f"```\n{first}\n{second}\n```" in (out / "README.md").read_text()
    assert training_commands({**tree, "init_from": "nowhere.pt"})[0].count("init_from") == 1
    assert "research use only" in TERMS["flickr8k"]


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
    moved = dataclasses.replace(model.trained, data=Flickr8kData(root=str(tmp_path)))
    with pytest.raises(DataError, match="trained on, and they are not here: no captions of Flick"):
        assert moved.training_frequencies


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
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent / "src"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == captioner.load(trained, "cpu").caption(photo)


def test_weights_saved_on_a_gpu_load_here(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's tensors say "cuda:0" in the file: here the file is made to say so without a GPU."""
    whole = load_checkpoint(trained)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        save_checkpoint(tmp_path / "best.pt", whole)
    with zipfile.ZipFile(tmp_path / "best.pt") as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        assert b"cuda:0" in archive.read(pickled)
    photo = scenes(trained)[0]
    expected = captioner.load(trained, "cpu").caption(photo)
    assert captioner.load(tmp_path / "best.pt", "cpu").caption(photo) == expected


def test_an_encoder_that_nobody_else_has_is_included(frozen: Path, tmp_path: Path) -> None:
    """Without its file, and with a tensor of it changed, a model folder says so itself."""
    out = export_folder(config(frozen, tmp_path / "my_model"))
    included = [name for name in open_checkpoint(out).model if name.startswith("encoder.")]
    assert included
    card = (out / "README.md").read_text()
    identity = json.loads(load_checkpoint(frozen).texts["encoder"])
    assert identity["fingerprint"] in card and "squeezenet1_1" in card
    content = json.loads((out / "config.json").read_text())
    content["encoder"]["fingerprint"] = "0" * 64
    (out / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="another encoder"):
        captioner.load(out, "cpu")


def test_the_card(trained: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    evaluation = {
        "BLEU-4": 20.5,
        "intervals": {"BLEU-4": [18.25, 22.75]},
        "protocol": {
            "data": "drawn scenes",
            "split": "test",
            "protocol": "coco",
            "generation": {"method": "beam", "beam_size": 5},
        },
    }
    (tmp_path / "scores.json").write_text(json.dumps(evaluation))
    scores = f"scores={tmp_path}/scores.json"
    out = export_folder(config(trained, tmp_path / "my_model", scores, "license=mit"))
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["license"], fields["pipeline_tag"]) == ("mit", "image-to-text")
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    assert result["metrics"] == [{"type": "bleu", "name": "BLEU-4", "value": 20.5}]
    assert "| BLEU-4 | 20.50 | 18.25 to 22.75 |" in body
    for part in ("beam size: 5", "protocol: coco", 'captioner.load("my_model")', "limits"):
        assert part in body
    assert f"captioner {captioner.__version__} with PyTorch {torch.__version__}" in body


def test_a_language_model_goes_the_same_way(language_model: Path, tmp_path: Path) -> None:
    out = export_folder(config(language_model, tmp_path / "writer"))
    before, after = captioner.load(language_model, "cpu"), captioner.load(out, "cpu")
    assert isinstance(before, TextModel) and isinstance(after, TextModel)
    text = after.generate("the ", length=40, seed=3)
    assert len(text) == 40 and text == before.generate("the ", length=40, seed=3)
    assert len(after.samples("the ", n=2, length=5)) == 2
    assert 'pipeline_tag: "text-generation"' in (out / "README.md").read_text()
    with pytest.raises(ConfigError, match="language model"):
        export_onnx(config(language_model, tmp_path / "m.onnx", "format=onnx"))


def test_nothing_is_overwritten_without_a_word(trained: Path, tmp_path: Path) -> None:
    out = export_folder(config(trained, tmp_path / "my_model"))
    before = (out / "README.md").stat().st_ino
    with pytest.raises(DataError, match="overwrite=true"):
        export_folder(config(trained, out))
    export_folder(config(trained, out, "overwrite=true"))
    assert (out / "README.md").stat().st_ino != before
    other = tmp_path / "photos"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="no model folder"):
        export_folder(config(trained, other, "overwrite=true"))
    assert {p.name for p in tmp_path.iterdir()} == {"my_model", "photos"}
    assert (other / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("model.safetensors", lambda b: b[:-40] + b"x" * 40, "model.safetensors is damaged"),
        ("model.safetensors", lambda b: b[:100], "model.safetensors is damaged"),
        ("vocabulary.json", lambda b: b.replace(b"a", b"b", 1), "vocabulary.json is damaged"),
        ("vocabulary.json", None, "vocabulary.json is missing"),
        ("config.json", lambda b: b[:50], r"config\.json.*: not JSON"),
        ("config.json", lambda b: b'{"model_type": "bert"}', "config.json is not of a model"),
        ("config.json", None, "cannot read .*config.json"),
        ("config.json", lambda b: b.replace(b'"version": 1', b'"version": 7'), "of version 7"),
        ("model.safetensors", None, "neither a model folder .* nor a run's"),
    ],
)
def test_a_broken_folder_is_named(
    trained: Path, tmp_path: Path, file: str, damage: Callable[[bytes], bytes] | None, said: str
) -> None:
    out = export_folder(config(trained, tmp_path / "my_model"))
    if damage is None:
        (out / file).unlink()
    else:
        (out / file).write_bytes(damage((out / file).read_bytes()))
    with pytest.raises(CheckpointError, match=said):
        captioner.load(out, "cpu")


def test_results_do_not_fall_into_a_folder_to_be_given_away(trained: Path, tmp_path: Path) -> None:
    out = export_folder(config(trained, tmp_path / "my_model"))
    assert results_folder(out, "dev_beam3") == tmp_path / "my_model_dev_beam3"
    assert results_folder(trained, "dev_beam3") == trained.parent / "dev_beam3"
    assert results_folder(trained.parent, "dev_beam3") == trained.parent / "dev_beam3"


def test_captions_that_differ_are_an_error(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: one of two images gets another word."""
    comparison = Comparison()
    said = Caption("a dog", (("a", 0.5), ("dog", 0.5)), -2.0, True)
    comparison.add("1.png", [said], [("a dog", -2.00001)])
    comparison.add("2.png", [said], [("a cat", -2.5)])
    assert (comparison.equal, comparison.images) == (1, 2)
    assert comparison.largest_difference == pytest.approx(1e-5)
    monkeypatch.setattr("captioner.commands.export.export_onnx", lambda _: comparison)
    with pytest.raises(CaptionerError, match=r"1 of 2 .*2\.png: torch -2\.0+ 'a dog', onnx -2\.5"):
        export(config(trained, tmp_path / "m.onnx", "format=onnx"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["format=onyx"], "did you mean 'onnx'"),
        (["format=onnx", "generation=sample"], "must be greedy or beam"),
        (["format=onnx", "generation.groups=3"], "generation.groups must be 1"),
        (["format=onnx", "generation.rerank=consensus"], "generation.rerank must be none"),
        (["format=onnx", "pictures=0"], "pictures must be at least 1"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(Path("x"), Path("y"), *overrides)
