"""A recipe: stages that begin where others ended, what is not repeated, and the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from composed import compose_config
from tiny_captioners import CONFIGS, SCENES

from captioner.commands import recipe, table
from captioner.commands.cli import run_task
from captioner.errors import CaptionerError, ConfigError
from captioner.runs.outcome import read_outcome

STAGES: dict[str, Any] = {
    "first": {"experiment": "scenes", "minutes": 2},
    "other": {"experiment": "scenes", "seed": 1, "minutes": 2},
    "second": {
        "experiment": "scenes",
        "init_from": "first",
        "overrides": ["optimizer.lr=1e-3", "trainer.epochs=1"],
        "minutes": 1,
    },
}
ROWS = [
    {"name": "first", "stages": ["first"]},
    {"name": "+ second", "stages": ["second"], "generation": {"beam_size": 2}},
    {
        "name": "ensemble",
        "stages": ["second", "other"],
        "generation": {"beam_size": 3, "rerank": "consensus", "document_frequencies": "train"},
    },
]
# Both seeds read the same scenes; encoder and training are as in tiny_captioners.
COMMON = [*SCENES, "encoder.name=plain_small", "encoder.size=32", "data.seed=0"]


def configured(out: Path, **changes: Any) -> Any:
    settings = {"out": str(out), "recipe": {"stages": STAGES, "rows": ROWS}, **changes}
    config = compose_config("recipe", [f"out={out}"], configs=CONFIGS)
    plan = recipe.schema.PlanConfig(
        stages={k: recipe.schema.StageConfig(**x) for k, x in settings["recipe"]["stages"].items()},
        rows=[recipe.schema.RowConfig(**x) for x in settings["recipe"]["rows"]],
    )
    config.recipe, config.stages = plan, changes.get("stages", [])
    config.overrides = [*COMMON, f"data.root={out.parent}/scenes", *changes.get("overrides", [])]
    return config


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that a recipe calls, each run in this process."""
    calls: list[str] = []

    def call(command: str, overrides: Sequence[str], what: str) -> None:
        calls.append(what)
        run_task(table.COMMANDS[command].task, compose_config(command, overrides, configs=CONFIGS))

    monkeypatch.setattr(recipe, "_call", call)
    return calls


def test_stages_are_trained_once_scored_and_compared(tmp_path: Path, called: list[str]) -> None:
    out = tmp_path / "out"
    shown = "\n".join(recipe.run(configured(out)))
    stages = ["the stage first", "the stage other", "the stage second"]
    assert called == [*stages, *(f"the scoring of {row['name']!r}" for row in ROWS)]
    begun = json.loads((out / "second/config.json").read_text())
    assert begun["init_from"] == f"{out}/first/best.pt" and begun["optimizer"]["lr"] == 1e-3
    assert json.loads((out / "other/config.json").read_text())["seed"] == 1
    lines = (out / recipe.TABLE).read_text().splitlines()
    assert len(lines) == 2 + len(ROWS) and lines[2] in shown
    cells = [[cell.strip() for cell in line.split("|")] for line in lines[2:]]
    assert [row[1] for row in cells] == ["first", "+ second", "ensemble"]
    assert cells[0][6] == "" and "(" in cells[1][6] and cells[2][7] == "0, 1"
    (ensemble,) = out.glob("scores/second_other_dev_*/scores.json")
    card = json.loads(ensemble.read_text())["protocol"]
    assert card["checkpoint"].count("best.pt") == 2
    asked: Any = ROWS[2]["generation"]
    assert asked.items() <= card["generation"].items()
    called.clear()
    assert "\n".join(recipe.run(configured(out))) == shown  # nothing is trained or scored again
    assert called == []


def test_a_stage_whose_beginning_is_another_now_is_refused(
    tmp_path: Path, called: list[str]
) -> None:
    out, plan = tmp_path / "out", {"stages": STAGES, "rows": []}
    with pytest.raises(ConfigError, match="second begins with first, which is not trained in"):
        list(recipe.run(configured(out, stages=["second"])))
    list(recipe.run(configured(out, stages=["first", "second"], recipe=plan)))
    assert called == ["the stage first", "the stage second"]
    best = out / "first/best.pt"
    best.write_bytes((out / "second/best.pt").read_bytes())
    with pytest.raises(ConfigError, match=r"began with another .*first/best.pt than the one"):
        list(recipe.run(configured(out)))
    assert "the stage other" not in called


def test_what_is_wrong_in_any_stage_is_said_before_the_first_is_trained(
    tmp_path: Path, called: list[str]
) -> None:
    with pytest.raises(ConfigError, match="hiden_size"):
        list(recipe.run(configured(tmp_path / "out", overrides=["model.hiden_size=3"])))
    rows = [{**ROWS[0], "generation": {"rerenk": "consensus"}}]
    with pytest.raises(ConfigError, match="rerenk"):
        list(recipe.run(configured(tmp_path / "out", recipe={"stages": STAGES, "rows": rows})))
    assert called == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stages", "rows", "message"),
    [
        ({"a": {"experiment": "scenes", "init_from": "b"}}, [], "a begins with init_from=b"),
        ({"a": {"experiment": "scenes"}}, [{"name": "x", "stages": ["b"]}], "'x' must be one of a"),
        ({"a": {"experiment": "scenes"}}, [{"name": "x"}], "'x' of a recipe must name a stage"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(
    stages: dict[str, Any], rows: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, recipe={"stages": stages, "rows": rows})


def test_a_command_that_fails_stops_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="the stage x ended with exit status 2; why stands"):
        recipe._call("train", ["model.hiden_size=3"], "the stage x")


def test_time_left_is_scaled_by_the_stages_that_are_done() -> None:
    jobs = [
        recipe.Job(name, recipe.schema.StageConfig(**stage), Path("out"), ())
        for name, stage in STAGES.items()
    ]
    left = recipe.Forecast(jobs)
    assert str(left) == "about 2 min; all stages 5 min"
    left.done(jobs[0], 240.0)  # twice as long as there
    assert str(left) == "about 4 min; all stages 6 min"


def test_keys_of_the_data_are_given_to_every_stage(tmp_path: Path) -> None:
    composed = compose_config("recipe", ["out=o", "data.root='/a=b c'"], configs=CONFIGS)
    assert recipe.data_overrides(composed.data) == ['data.root="/a=b c"']
    given = ["out=o", "data=karpathy", "data.json=x.json", "data.images=y"]
    overrides = recipe.data_overrides(compose_config("recipe", given, configs=CONFIGS).data)
    assert overrides[0] == "data=karpathy" and 'data.json="x.json"' in overrides
    config = compose_config("train", ["experiment=nic_flickr8k", *overrides], configs=CONFIGS)
    assert config.data.kind == "karpathy" and config.data.json == "x.json"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("recipe/*.yaml")))
def test_the_recipes_of_the_package_are_of_its_experiments(name: str) -> None:
    given = ["out=o", "data.root=r", f"recipe={name}"]
    config = compose_config("recipe", given, configs=CONFIGS)
    for row in config.recipe.rows:  # whose settings hold together
        compose_config("train", [f"generation.{k}={x}" for k, x in row.generation.items()])
    for stage in config.recipe.stages.values():
        assert (CONFIGS / "experiment" / f"{stage.experiment}.yaml").exists()
    assert read_outcome(Path("nowhere")) is None
