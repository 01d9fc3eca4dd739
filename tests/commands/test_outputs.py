"""No command writes over what is there, its own inputs least of all, unless it is told to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from in_process import COMMANDS, call

from benchmarks.command import BenchmarkConfig
from captioner import config as schema
from captioner.commands.outputs import refuse_overwriting
from captioner.errors import ConfigError
from captioner.runs.folder import FolderTaken, claim_run_folder

GENERATION = schema.GenerationConfig()
SCORED = {"results": "h.json", "references": "r.json"}
# A command's settings, and a file that it would write over.
WRITTEN: list[tuple[str, dict[str, Any], str]] = [
    ("average", {"checkpoint": ["a.pt", "b.pt"], "out": "a.pt"}, "a.pt"),
    ("caption", {"checkpoint": "a.pt", "images": "b.jpg", "out": "b.jpg"}, "b.jpg"),
    ("compare", {"runs": ["a", "b"], "out": "a.json"}, "a.json"),
    ("compare", {"runs": ["a", "b"], "report": "a.html"}, "a.html"),
    ("evaluate", {**SCORED, "out": "h.json"}, "h.json"),
    ("evaluate", {**SCORED, "out": "r.json"}, "r.json"),
    ("evaluate", {**SCORED, "out": "x.json"}, "x_images.json"),
    ("evaluate", {**SCORED, "out": "x.json"}, "x.html"),
    ("evaluate", {"human": True, "references": "r.json", "out": "r.json"}, "r.json"),
    ("evaluate", {"checkpoint": "a.pt", "out": "run"}, "run/captions.json"),
    ("evaluate", {"checkpoint": "a.pt", "page": "a.pt"}, "a.pt"),
    (
        "export",
        {"checkpoint": "a.pt", "out": "a.onnx", "format": "onnx", "generation": GENERATION},
        "a.check.json",
    ),
    ("leaderboard", {"folders": ["a"], "out": "a.csv"}, "a.csv"),
    ("leaderboard", {"folders": ["a"], "page": "a.html"}, "a.html"),
    ("sample", {"checkpoint": "a.pt", "out": "a.pt"}, "a.pt"),
]


def test_every_command_that_names_an_output_is_looked_at() -> None:
    commands = {**schema.COMMANDS, "benchmark": BenchmarkConfig}
    writing = {name for name, kind in commands.items() if issubclass(kind, schema.OutputConfig)}
    assert writing == {"benchmark", *(name for name, _, _ in WRITTEN)}
    # What trains and prepares keeps folders of its own; the page writes nothing.
    assert set(commands) - writing == {"train", "recipe", "prepare_flickr8k", "demo"}


@pytest.mark.parametrize(("name", "given", "there"), WRITTEN)
def test_what_is_there_is_written_over_only_on_demand(
    name: str, given: dict[str, Any], there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = schema.COMMANDS[name](**given)
    refuse_overwriting(config)
    Path(there).parent.mkdir(exist_ok=True)
    Path(there).touch()
    with pytest.raises(ConfigError, match=rf"{there} is there already.*overwrite=true"):
        refuse_overwriting(config)
    config.overwrite = True
    refuse_overwriting(config)


def test_an_input_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results = json.dumps([{"image_id": 1, "caption": "a dog runs"}])
    Path("h.json").write_text(results)
    annotations = [{"id": 1, "image_id": 1, "caption": "a dog runs"}]
    Path("r.json").write_text(json.dumps({"images": [{"id": 1}], "annotations": annotations}))
    script = next(path for path in COMMANDS if path.stem == "evaluate")
    arguments = ["results=h.json", "references=r.json", "metrics=[BLEU]", "samples=0", "report=0"]
    assert call(script, *arguments, "out=h.json", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err.startswith("error: h.json is there already")
    assert Path("h.json").read_text() == results
    again = "overwrite=true"
    assert call(script, *arguments, "out=h.json", again, monkeypatch=monkeypatch) == 0
    assert "BLEU-4" in json.loads(Path("h.json").read_text())


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    with pytest.raises(ConfigError, match="folder is a folder"):
        refuse_overwriting(schema.SampleConfig(checkpoint="a", out="folder"))
    with pytest.raises(ConfigError, match="file is no folder"):
        refuse_overwriting(schema.SampleConfig(checkpoint="a", out="file/b/c.json"))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigError, match="may not be written in"):
        refuse_overwriting(schema.SampleConfig(checkpoint="a", out="b/c.json"))


def test_a_run_does_not_begin_where_tensorboard_could_not_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir must be a name in UTF-8.*caf\\udce9"):
        claim_run_folder(tmp_path / os.fsdecode(b"caf\xe9"), {"seed": 1}, resume=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_does_not_begin_beside_the_checkpoints_of_another(
    name: str, resume: bool, tmp_path: Path
) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FolderTaken, match=f"holds {name} of a run whose config.json is not there"):
        claim_run_folder(tmp_path, {"seed": 1}, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [name]
