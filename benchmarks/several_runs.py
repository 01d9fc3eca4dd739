"""How many training runs a device holds side by side: K processes at once, each with its own model.

Run as `python -m benchmarks.several_runs SETTINGS` (JSON) it is one of them: it says that
it is ready, waits for a line, takes steps for so many seconds and says how many they were.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.epoch_data import draw_captions
from benchmarks.epoch_floor import synchronize
from benchmarks.epoch_passes import PassSettings, float32_products
from benchmarks.own_passes import OWN
from benchmarks.processes import python_path

WARM_UP, TURN = 20, 10  # steps; how many are taken between two looks at the clock


def steps_at_once(count: int, settings: Mapping[str, Any]) -> list[int]:
    """The steps that each of `count` runs took in the same `settings["seconds"]` seconds.

    `settings`: device, sizes (images, feature_dim), seconds, and what PassSettings takes.
    RuntimeError with what a run said that could not begin.
    """
    command = [sys.executable, "-m", "benchmarks.several_runs", json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    runs = [
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    try:
        for run in runs:
            _hear(run, "ready")
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
        return [int(_hear(run, "took")) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def _hear(run: subprocess.Popen[str], word: str) -> str:
    """What stands behind `word` on the line that begins with it."""
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith(word):
            return line.removeprefix(word).strip()
    raise RuntimeError(f"a run ended with {run.wait()} before it was {word}")


def main(text: str) -> None:
    """One of the runs."""
    settings = json.loads(text)
    device = torch.device(settings.pop("device"))
    sizes, seconds = settings.pop("sizes"), settings.pop("seconds")
    with float32_products(settings["dtype"]):
        data = draw_captions(sizes["images"], sizes["feature_dim"], seed=0)
        own = PassSettings(**settings)
        passes = OWN[own.way](own, data, device)
        passes.steps(WARM_UP)
        synchronize(device)
        print("ready", flush=True)
        sys.stdin.readline()
        taken, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            passes.steps(TURN)
            synchronize(device)
            taken += TURN
    print(f"took {taken}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
