"""Every command of README and docs/ is run on tiny data, or named here with why it cannot be."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config
from documentation import PAGES, REPOSITORY, blocks, commands, commands_of_configs, parts

from captioner.commands import cli
from captioner.commands.cli import gather_list, quote
from captioner.commands.table import COMMANDS
from captioner.ops.extension import ABSENT

pytestmark = pytest.mark.slow
CONFIGS = REPOSITORY / "configs"
# What is not run here, by the beginning of the command, and why. What has a configuration is
# composed all the same.
ONNX = "an export takes a quarter of a minute; tests/commands types it"
NOT_RUN = {
    "python scripts/prepare_flickr8k.py": "downloads Flickr8k; tests/data does it offline",
    "python scripts/demo.py": "serves until it is stopped; tests/demo drives the page",
    "python scripts/benchmark.py": "minutes to hours; tests/benchmarks runs every suite in small",
    "python scripts/gpu_check.py": "needs a GPU",
    "python scripts/sample.py checkpoint=outputs/code/best.pt chat": "reads standard input",
    "python scripts/export.py checkpoint=outputs/nic/best.pt format=onnx": ONNX,
    "python scripts/export.py checkpoint=my_model format=onnx": ONNX,
    "python scripts/recipe.py": "trains for an hour; tests/commands runs a recipe in small",
    "torchrun": "starts processes; tests/training does so",
    "python scripts/train.py -m hydra/launcher=joblib": "starts processes; tests/sweeps",
    "python scripts/train.py -m hydra/launcher=submitit_local": "starts processes; tests/sweeps",
    "python scripts/train.py -m hydra/launcher=replicas": "tests/sweeps runs such sweeps in small",
    "python scripts/train.py -m hydra/launcher=submitit_slurm": "needs a cluster",
    "make": "sets up an environment or runs for minutes; the target is looked up in the Makefile",
    "python -m benchmarks.models_prediction": "prints a table; tests/benchmarks holds it",
    "python setup.py": "compiles; tests/test_setup.py does",
}
# As few numbers as a command can do with, behind its own overrides.
TINY = ["trainer.progress=false", "trainer.shown_pictures=1", "vocabulary.min_count=1"]
TINY_MODEL = ["model.hidden_size=16", "model.embedding_dim=16"]
TINY_CAPTIONS = ["trainer.batch_size=8", "generation.max_length=4", "generation.min_length=1"]
TINY_SCENES = ["data.train=8", "data.dev=3", "data.test=3", "data.size=32", "encoder.size=32"]
TINY_ENCODER = [
    *("encoder.kind=plain", "encoder.name=plain_small", "encoder.weights=plain.pt"),
    "encoder.size=32",
]
TINY_TEXT = ["trainer.batch_size=2", "trainer.window=16", "trainer.epoch_windows=2"]
TINY_OTHERS = {
    "evaluate": ["samples=10", "metrics=[BLEU,CIDEr]"],
    "compare": ["samples=50"],
    "sample": ["length=20"],
}
# Checkpoints that the pages name and none of their commands makes, and what stands for them.
COPIES = {
    "outputs/neon": "outputs/nic",
    "outputs/demo": "outputs/mine",
    "nic": "outputs/nic",
    "neon": "outputs/nic",
    "shakespeare": "outputs/shakespeare",
}
SCORED = ("a/scores", "b/scores", "seed0", "seed1", "seed2")


def reason_not_run(command: str) -> str | None:
    return next((why for begin, why in NOT_RUN.items() if command.startswith(begin)), None)


def config_of(command: str, arguments: Sequence[str] | None = None) -> Any:
    """The composed configuration of a command; a sweep's first run stands for all of them."""
    script, own = parts(command)
    arguments = own if arguments is None else list(arguments)
    keys = {"compare": "runs", "leaderboard": "folders"}
    if script in keys:
        arguments = gather_list(arguments, keys[script])
    arguments = [quote(one, ("prompt", "stop")) for one in arguments]
    if "-m" in arguments:
        arguments = [_first_value(x) for x in arguments if x != "-m" and not x.startswith("hydra")]
    return compose_config(script, arguments, configs=CONFIGS)


def _first_value(override: str) -> str:
    key, _, values = override.partition("=")
    value = re.sub(r"tag.*", "1e-3", values.split(",")[0])
    return override if key == "sweep_dir" else f"{key}={value}"


def data_of(arguments: Sequence[str]) -> str:
    """Which data a training command reads, such as "scenes"."""
    given = dict(x.partition("=")[::2] for x in arguments)
    if "data" in given or "experiment" not in given:
        return given.get("data", "scenes")
    first = re.sub("_(large|regularised|reward|finetune|attention)$", "", given["experiment"])
    experiment = CONFIGS / "experiment" / f"{first}.yaml"
    found = re.search(r"override /data: (\w+)", experiment.read_text("utf-8"))
    assert found, experiment
    return found[1]


def phase(command: str) -> int:
    """When a command can be run: after those that make what it reads."""
    script, arguments = parts(command)
    order = [
        "train",
        "average",
        "evaluate",
        "compare",
        "export",
        "caption",
        "sample",
        "leaderboard",
    ]
    late = any(x in arguments for x in ("resume=true", "-m", "format=onnx", "overwrite=true"))
    late = late or any(x.startswith("init_from=") for x in arguments)
    return 2 * order.index(script) + late


def tiny(command: str) -> list[str]:
    """A command's arguments with what makes it small."""
    script, arguments = parts(command)
    if script != "train":
        return arguments + TINY_OTHERS.get(script, [])
    if "--help" in arguments or "--cfg" in arguments:
        return arguments
    data = data_of(arguments)
    text = data in ("text", "tiny_shakespeare", "python_source")
    small = [*TINY, *(TINY_TEXT if text else TINY_CAPTIONS)]
    if "-m" in arguments:
        arguments = [x.replace("128,256", "8,16") for x in arguments]
    else:
        small += TINY_MODEL
    if "trainer.keep_epochs=3" not in arguments:
        small += ["trainer.epochs=1"]
    if text:
        small += ["data.source=path"]
        small += (
            [] if any(x.startswith("data.path=") for x in arguments) else ["data.path=book.txt"]
        )
    elif data == "scenes":
        small += TINY_SCENES
    elif "encoder=features" not in arguments:
        small += TINY_ENCODER
        if any(x.endswith("_finetune") for x in arguments):
            small += ["encoder.train_from=stage3"]
    if "hydra/sweeper=optuna" in arguments:
        small += ["hydra.sweeper.n_trials=2"]
    if "trainer.replicas=8" in arguments:
        small += ["trainer.replicas=2"]
    named = any(x.startswith(("run_dir=", "sweep_dir=")) for x in arguments)
    return arguments + small + ([] if named else [f"run_dir=outputs/{_slug(command)}"])


def _slug(command: str) -> str:
    return re.sub(r"\W+", "_", command.split("train.py")[1]).strip("_") or "default"


ANSWERED_BY_HYDRA = {"-m", "--help", "--cfg"}


@dataclass
class Done:
    """How a command ended and what it said."""

    status: int | str | None
    output: str


@contextlib.contextmanager
def direct(compose: Callable[[], Any]) -> Iterator[None]:
    """Scripts call their task with the configuration that `compose` gives, without Hydra's main."""

    def call(name: str) -> None:
        cli.run_task(COMMANDS[name].task, compose())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "run_command", call)
        yield


def run(command: str) -> Done:
    """A command in this process, as its script runs it; Hydra's own main only where it answers."""
    script, arguments = parts(command)[0], tiny(command)
    path = str(REPOSITORY / f"scripts/{script}.py")
    said, before = io.StringIO(), sys.argv
    status: int | str | None = 0
    sys.argv = [path, *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            hydra = bool(ANSWERED_BY_HYDRA & set(arguments))
            with (
                contextlib.nullcontext() if hydra else direct(lambda: config_of(command, arguments))
            ):
                runpy.run_path(path, run_name="__main__")
    except SystemExit as error:
        status = error.code or 0
    except Exception:
        status = traceback.format_exc()
    finally:
        sys.argv = before
    return Done(status, said.getvalue())


@pytest.fixture(scope="module")
def done(workspace: Path) -> Iterator[dict[str, Done]]:
    """All commands that are run, one after another in the workspace, and how each ended."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(workspace)
    torch.set_num_threads(1)
    results: dict[str, Done] = {}
    runnable = [x for x in commands() if reason_not_run(x) is None]
    try:
        for command in sorted(runnable, key=phase):
            if phase(command) >= 4:
                _copy_checkpoints()
            if phase(command) >= 6:
                _copy_scores()
            results[command] = run(command)
        yield results
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def _copy_checkpoints() -> None:
    for target, source in COPIES.items():
        if not Path(target).exists() and Path(source).exists():
            shutil.copytree(source, target)


def _copy_scores() -> None:
    found = sorted(Path("outputs/nic").glob("dev_beam5"))
    for target in SCORED if found else ():
        if not Path(target).exists():
            shutil.copytree(found[0], target)


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_of_the_pages_is_right(command: str, done: dict[str, Done]) -> None:
    if command in done:
        assert done[command].status == 0, f"{done[command].status}\n{done[command].output}"
    elif command.startswith("make "):
        target = command.split()[1]
        assert re.search(rf"^{target}:|^SCRIPTS_RUN.*\b{target}\b", MAKEFILE, re.M), target
    else:
        compose(command)


def compose(command: str) -> None:
    """Hold a command's overrides against its schema."""
    script = parts(command)[0]
    if script == "benchmark":  # whose schema the script brings along
        done = run(f"{command} --cfg job")
        assert done.status == 0, done.output
    elif script not in ("", "gpu_check") and "--help" not in command:
        config_of(command)


MAKEFILE = (REPOSITORY / "Makefile").read_text("utf-8")


def test_every_reason_is_that_of_a_command() -> None:
    unused = [begin for begin in NOT_RUN if not any(x.startswith(begin) for x in commands())]
    assert not unused


@pytest.mark.parametrize("command", dict.fromkeys(commands_of_configs()), ids=str)
def test_a_command_at_the_head_of_a_configuration_composes(command: str) -> None:
    compose(command.replace("...", "x"))


def test_one_command_as_a_process_of_its_own(
    done: dict[str, Done], workspace: Path, run_script: Any
) -> None:
    command = "python scripts/caption.py checkpoint=outputs/nic/best.pt images=photo.jpg"
    script, arguments = parts(command)
    result = run_script(workspace, script, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("photo.jpg\n")
    assert result.stdout == done[command].output[-len(result.stdout) :]


PYTHON = [b for page in PAGES for b in blocks(page) if b.language == "python" and not b.marked]


@pytest.mark.parametrize("block", PYTHON, ids=[block.name for block in PYTHON])
def test_python_that_uses_a_trained_model(block: Any, done: dict[str, Done]) -> None:
    code = compile(block.text, block.name, "exec")
    if "onnxruntime" not in block.text:  # ONNX above
        exec(code, {})


def test_the_extension_is_what_the_graph_commands_run_with() -> None:
    assert ABSENT is None, ABSENT
