"""The CUDA kernels through nvcc: no warnings, and nothing of a kernel in local memory.

Minutes, which `make test-cuda-build` takes and `make test` leaves out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
INCLUDE = Path(torch.__file__).parent / "include"
# The code of two generations, and PTX for those to come.
TARGETS = [
    *("-gencode", "arch=compute_80,code=sm_80"),
    *("-gencode", "arch=compute_90,code=sm_90"),
    *("-gencode", "arch=compute_90,code=compute_90"),
]
USAGE = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.fixture(scope="session")
def nvcc() -> Path:
    """CUDA_HOME's compiler, else the one on the path."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    named = Path(home) / "bin" / "nvcc" if home else None
    found = str(named) if named and named.exists() else shutil.which("nvcc")
    if found is None:
        pytest.skip("needs nvcc (none in CUDA_HOME or on PATH): the CUDA kernels are not compiled")
    return Path(found)


@pytest.mark.nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_kernels_compile_without_warnings_and_spill_nothing(
    nvcc: Path, source: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(nvcc, "-std=c++17", "-O3", "-c", source, "-o", tmp_path / "kernels.o"),
            *TARGETS,
            *("-isystem", INCLUDE, "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"),
            *("-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage"),
        ],
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    usage = USAGE.findall(said)
    # One report a kernel and architecture; templates make more kernels than the source names.
    named = len(re.findall(r"^__global__", source.read_text(), re.M))
    assert named > 0 and len(usage) >= 2 * named, said
    assert set(usage) == {("0", "0", "0")}, said


@pytest.mark.nvcc
def test_the_program_of_latencies_compiles(nvcc: Path, tmp_path: Path) -> None:
    source = CSRC.parent / "benchmarks" / "latency.cu"
    done = subprocess.run(
        [
            *(nvcc, "-std=c++17", "-O3", "-arch=sm_90", "-isystem", INCLUDE),
            *("-I", CSRC / "cuda", "-Werror", "all-warnings", "-c", source),
            *("-o", tmp_path / "latency.o"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kernel_source_is_looked_at() -> None:
    with_kernels = {path for path in CSRC.rglob("*") if path.is_file() and _has_kernel(path)}
    assert with_kernels == set(SOURCES)


def _has_kernel(path: Path) -> bool:
    return re.search(r"^__global__", path.read_text(), re.M) is not None
