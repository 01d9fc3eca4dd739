"""The CUDA sources as programs under AddressSanitizer and UBSan, on the host.

Faults are planted in copies of the kernels: a test that could not fail would show nothing. One
program has all faults of its kernels, and each is done only in a run that chooses it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Compiler = Any  # tests/ops/conftest.py has it
DIRECTIONS = ("forward", "backward")
PLAIN = ["recurrence.cu", "segment_sum.cu"]
PERSISTENT = [
    *(f"{kernel}_{direction}.cu" for kernel in ("persistent", "tiled") for direction in DIRECTIONS),
    "work_partition.cpp",
]
# Of 1 + |expected|. tf32 has ten bits of mantissa, as half has, bfloat16 seven.
TOLERANCE = {"float": 2e-3, "half": 2e-3, "bfloat16": 1e-2}


def execute(
    program: Path, *arguments: str, schedule: str = "forward", fault: int = 0
) -> tuple[int, str]:
    """Exit status of a sanitized program and what it said, warnings about fibres excepted."""
    environment = {
        **os.environ,
        "CUDA_EMULATION_SCHEDULE": schedule,
        "CUDA_EMULATION_FAULT": str(fault),
        "ASAN_OPTIONS": "detect_leaks=0",  # abandoned fibres keep what they had
    }
    done = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=600
    )
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, "\n".join(x for x in lines if "makecontext/swapcontext" not in x)


def differences(said: str) -> list[float]:
    """What a run of the persistent kernels says of its forward and its backward."""
    return [float(x) for x in re.findall(r"(?:forward|backward) (\S+)", said)]


@cache
def bits(program: Path, *case: str, schedule: str = "forward", multiprocessors: int = 8) -> str:
    """A hash of all results of forward and backward, on a device of so many multiprocessors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_EMULATION_MULTIPROCESSORS", str(multiprocessors))
        status, said = execute(program, *case, schedule=schedule)
    assert status == 0, said
    return re.findall(r"bits (\w+)", said)[0]


def plain_sources(compiler: Compiler) -> list[Path]:
    """sanitized.cpp and the kernels that it launches."""
    return [compiler.emulation / "sanitized.cpp", *(compiler.cuda / name for name in PLAIN)]


def persistent_sources(compiler: Compiler) -> list[Path]:
    """persistent.cpp and the kernels that it launches."""
    return [*(compiler.cuda / name for name in PERSISTENT), compiler.emulation / "persistent.cpp"]


class Fault(NamedTuple):
    """Another text for a file of csrc/cuda, in which FAULT says whether the fault is chosen."""

    file: str
    right: str
    wrong: str
    places: int = 1  # how often the right text occurs


def faulty_program(
    compiler: Compiler, sources: list[Path], faults: Sequence[Fault], *, others: str = ""
) -> Path:
    """A program of `sources` with all `faults`, the first of which is number 1.

    `others` is a pattern of what instantiates the kernels for other types than one: these are
    taken from the originals, so that they need not be compiled again.
    """
    cuda = compiler.cuda
    originals = [source for source in sources if source.suffix == ".cu"]
    texts = {file.name: file.read_text() for file in (*cuda.glob("*.h"), *originals)}
    for number, (file, right, wrong, places) in enumerate(faults, 1):
        assert texts[file].count(right) == places, right
        chosen = wrong.replace("FAULT", f"(::emulation::planted_fault() == {number})")
        texts[file] = texts[file].replace(right, chosen)
    key = hashlib.sha256(repr(texts).encode()).hexdigest()[:12]
    folder = compiler.folder / f"faulty-{key}"
    written = Path(tempfile.mkdtemp(dir=compiler.folder))
    for file, text in texts.items():
        text = text.replace('"../', f'"{cuda.parent}/')
        text = re.sub(others, "", text, flags=re.M) if others else text
        (written / file).write_text(f"{text}// {key}\n")  # objects are known by their source
    try:
        written.rename(folder)
    except OSError:  # another process of the test run was quicker
        shutil.rmtree(written)
    faulty = [folder / source.name for source in originals]
    kept = sources if others else [source for source in sources if source not in originals]
    return compiler.program(f"{folder.name}.out", kept, faulty=faulty)
