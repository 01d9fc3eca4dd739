"""SIGKILL at random moments of tiny runs of the commands, each run again to its end and compared.

    python tests/kills.py 200          so many kills, over all scenarios (`make kills`)

A scenario's command is killed after a random time, again and again, and then left to end. What it
leaves must be what it leaves when it is not disturbed, to the last bit, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from script_runner import Scripts

from captioner.training.checkpoint import load_checkpoint

LEAST = 0.05  # seconds before a kill; a run that has not begun says nothing
ROUND = 5  # kills before a command is left to end
TRAINER = "trainer.progress=false trainer.log_steps=1 trainer.checkpoint_steps=2"
MODEL = "model.embedding_dim=16 model.hidden_size=16 vocabulary.min_count=1"
SCENES = "data.train=24 data.dev=6 data.test=6 data.size=32 trainer.shown_pictures=1"
FROZEN = "encoder=torchvision encoder.name=resnet18 encoder.weights=random encoder.size=32"
CAPTIONS = f"{TRAINER} {MODEL} {SCENES} generation.max_length=5 trainer.batch_size=8"
TEXT = (
    "experiment=words data.unit=character data.path=text.txt model.num_layers=1 "
    f"trainer.batch_size=4 trainer.window=8 trainer.epoch_windows=12 {TRAINER} {MODEL}"
)


def write_text(folder: Path) -> None:
    """A text for language models."""
    (folder / "text.txt").write_text("the cat sat on the mat and saw a rat\n" * 40)


def write_archives(folder: Path) -> None:
    """Archives with as many images and captions as Flickr8k's, an image a few bytes."""
    (folder / "flickr8k").mkdir()
    names = [f"{number}.jpg" for number in range(8092)]  # one has captions and no image
    with zipfile.ZipFile(folder / "flickr8k" / "Flickr8k_Dataset.zip", "w") as archive:
        for name in names[:-1]:
            archive.writestr(zipfile.ZipInfo(f"Flicker8k_Dataset/{name}"), name)  # of no date
    captions = [f"{name}#{k}\ta dog\n" for name in names for k in range(5)]
    splits = {"train": names[:6000], "dev": names[6000:7000], "test": names[7000:8000]}
    with zipfile.ZipFile(folder / "flickr8k" / "Flickr8k_text.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("Flickr8k.token.txt"), "".join(captions))
        for split, own in splits.items():
            archive.writestr(zipfile.ZipInfo(f"Flickr_8k.{split}Images.txt"), "\n".join(own))


@dataclass(frozen=True)
class Scenario:
    """A command, what of its files or folders is compared, and what makes that which it reads: a
    function and commands."""

    command: str
    results: tuple[str, ...]
    before: tuple[str, ...] = ()
    make: Callable[[Path], None] = write_text


RUN = ("run/last.pt", "run/best.pt", "run/history.json")
# Its sweep_dir would hold a date.
KEPT = f"train {TEXT} run_dir=run sweep_dir=x trainer.epochs=3 trainer.keep_epochs=2"
SCENARIOS = {
    "features and training": Scenario(
        f"train {CAPTIONS} {FROZEN} encoder.resize=squash encoder.batch_size=4 encoder.workers=1 "
        "model.input_dropout=0.2 run_dir=run resume=true trainer.epochs=4",
        RUN,
    ),
    "a trained encoder": Scenario(
        f"train {CAPTIONS} encoder.name=plain_small encoder.size=32 run_dir=run resume=true "
        "trainer.ema=0.9 trainer.epochs=3",
        RUN,
    ),
    "a language model": Scenario(
        f"train {TEXT} run_dir=run resume=true trainer.epochs=4 model.output_dropout=0.2", RUN
    ),
    "replicas": Scenario(
        f"train {TEXT} run_dir=run resume=true trainer.epochs=3 trainer.replicas=2",
        ("run/replica_0/last.pt", "run/replica_1/last.pt", "run/replica_1/history.json"),
    ),
    "a sweep": Scenario(
        f"train -m {TEXT} sweep_dir=run trainer.epochs=2 optimizer.lr=1e-3,3e-3",
        ("run/lr=0.001/last.pt", "run/lr=0.003/last.pt", "run/lr=0.003/outcome.json"),
    ),
    "average": Scenario(
        "average checkpoint=[run/epoch_2.pt,run/epoch_3.pt] out=mean.pt overwrite=true",
        ("mean.pt",),
        (KEPT,),
    ),
    "export": Scenario(
        "export checkpoint=run/best.pt out=model overwrite=true",
        ("model/model.safetensors", "model/config.json", "model/vocabulary.json"),
        (KEPT,),
    ),
    "evaluation": Scenario(
        "evaluate checkpoint=run/best.pt split=dev out=scores overwrite=true",
        ("scores/scores.json",),
        (KEPT,),
    ),
    "prepare": Scenario(
        "prepare_flickr8k root=flickr8k download=false images_url=http://x/y text_url=http://x/y",
        ("flickr8k",),
        make=write_archives,
    ),
}


def main(kills: int, seed: int = 0) -> None:
    """Kill each scenario's command its share of times; AssertionError names what differs."""
    moments = random.Random(seed)
    scripts = Scripts()
    try:
        scripts.run(Path(), "leaderboard", "--help")  # begins the server, which is not to be timed
        for number, (name, scenario) in enumerate(SCENARIOS.items()):
            share = kills * (number + 1) // len(SCENARIOS) - kills * number // len(SCENARIOS)
            with tempfile.TemporaryDirectory(prefix="kills") as folder:
                runs = kill_often(scripts, Path(folder), scenario, share, moments)
            print(f"{name}: killed {share} times in {runs} runs, all bit-identical", flush=True)
    finally:
        scripts.close()


def kill_often(
    scripts: Scripts, folder: Path, scenario: Scenario, kills: int, moments: random.Random
) -> int:
    """Kill the command so often, `ROUND` times in each of several runs; how many these were."""
    whole = begun(scripts, folder / "whole", scenario)
    start = time.monotonic()
    run(scripts, whole, scenario.command)
    seconds = time.monotonic() - start
    expected = contents(whole, scenario)
    runs = 0
    while kills > 0:
        runs += 1
        place = begun(scripts, folder / f"{runs}", scenario)
        for _ in range(min(kills, ROUND)):
            process = scripts.start(place, *split(scenario.command))
            time.sleep(moments.uniform(LEAST, seconds))
            if process.poll() is not None:  # the end came first
                break
            process.kill()
            kills -= 1
        run(scripts, place, scenario.command)
        found = contents(place, scenario)
        for name, content in expected.items():
            assert equal(found[name], content), f"{scenario.command}: {name} differs"
        left = [*place.rglob(".*.*")]
        assert not left, f"{scenario.command}: {left} were left behind"
    return runs


def begun(scripts: Scripts, folder: Path, scenario: Scenario) -> Path:
    """A folder with what the command reads."""
    folder.mkdir()
    scenario.make(folder)
    for command in scenario.before:
        run(scripts, folder, command)
    return folder


def run(scripts: Scripts, folder: Path, command: str) -> None:
    """Run a command to its end."""
    script, arguments = split(command)
    done = scripts.run(folder, script, *arguments)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def split(command: str) -> tuple[str, list[str]]:
    """The script and its arguments."""
    script, *arguments = command.split()
    return script, arguments


def contents(folder: Path, scenario: Scenario) -> dict[str, Any]:
    """What the results hold: a checkpoint's weights, JSON without times, else a digest."""
    return {name: content(folder / name) for name in scenario.results}


def content(path: Path) -> Any:
    if path.is_dir():
        return {one.name: content(one) for one in sorted(path.rglob("*")) if one.is_file()}
    if path.suffix == ".pt":
        checkpoint = load_checkpoint(path)
        return {**checkpoint.model, "optimiser": (checkpoint.training or {}).get("optimizer")}
    if path.suffix == ".json":
        return [one for one in flat(json.loads(path.read_text())) if "seconds" not in one[0]]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flat(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested lists and dicts, each with its place."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, value in items:
            yield from flat(value, f"{key}.{name}")
    else:
        yield key, tree


def equal(found: Any, expected: Any) -> bool:
    """Whether two contents are the same, tensors to the last bit."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            equal(found[k], expected[k]) for k in expected
        )
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return bool(found == expected)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
