"""Builds the extension of csrc/; all else stands in pyproject.toml.

    python setup.py build_ext --inplace      # into src/captioner/ops/

CAPTIONER_CUDA=auto|0|1   CUDA kernels too: if nvcc is there, and a GPU or TORCH_CUDA_ARCH_LIST
                          that says what for; never; always
CAPTIONER_SANITIZE=1      with AddressSanitizer and UndefinedBehaviorSanitizer

The extension uses PyTorch's stable ABI of 2.11 and Python's of 3.10: one build serves both from
there on. Without a compiler, or where something goes wrong, the package is installed without it
and says so, here and whenever an LSTM is used; with CAPTIONER_CUDA=1 it is an error.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TORCH_TARGET = "0x020b000000000000"  # 2.11
WITHOUT = "captioner is installed without its compiled LSTM: "


def no_torch() -> str | None:
    """Why the extension cannot be built against PyTorch, or None."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not in the build environment (use pip's --no-build-isolation)"
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        return f"PyTorch must be 2.11 or newer, found {torch.__version__}"
    return None


def with_cuda() -> bool:
    """Whether to build the CUDA kernels: see CAPTIONER_CUDA above."""
    wanted = os.environ.get("CAPTIONER_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"CAPTIONER_CUDA must be auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return False
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = CUDA_HOME and Path(CUDA_HOME, "bin", "nvcc").exists()
    found = torch.version.cuda is not None and bool(nvcc)
    if wanted == "1" and not found:
        sys.exit(f"CAPTIONER_CUDA=1 needs nvcc and a CUDA build of PyTorch, found {CUDA_HOME=}")
    known = torch.cuda.is_available() or bool(os.environ.get("TORCH_CUDA_ARCH_LIST"))
    return wanted == "1" or (found and known)


def extension() -> Extension:
    """The sources and flags."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension, include_paths

    cuda = with_cuda()
    csrc = Path("csrc")
    folders = [csrc, csrc / "cpu", *([csrc / "cuda"] if cuda else [])]
    sources = [
        str(p)
        for folder in folders
        for p in sorted(folder.glob("*.c[pu]*"))
        if p.suffix in (".cpp", ".cu")
    ]
    # PyTorch's headers as system headers: their warnings are not ours.
    system = [f"-isystem{path}" for path in include_paths("cuda" if cuda else "cpu")]
    common = ["-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    if cuda:
        common.append("-DUSE_CUDA")  # declares the stream functions of the stable ABI
    cxx = [*common, *system, "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"]
    link = ["-g0"]
    if os.environ.get("CAPTIONER_SANITIZE") == "1":
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g"]
        cxx, link = [*cxx, *checks], checks
    make: Any = CUDAExtension if cuda else CppExtension
    return make(
        "captioner.ops._extension",
        sources,
        extra_compile_args={"cxx": cxx, "nvcc": [*common, "-O3", "--threads=2"]},
        extra_link_args=link,
        py_limited_api=True,
    )


def build_or_explain() -> type[build_ext]:
    """PyTorch's build_ext, which leaves the extension out in one sentence where it fails."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):  # type: ignore[misc]
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if os.environ.get("CAPTIONER_CUDA") == "1":
                    raise
                print(f"{WITHOUT}{str(error).strip().splitlines()[-1]}", file=sys.stderr)

    return Build


reason = no_torch()
if reason is None and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
    reason = "no C++ compiler was found"
if reason is None:
    setup(ext_modules=[extension()], cmdclass={"build_ext": build_or_explain()})
else:
    print(WITHOUT + reason, file=sys.stderr)
    setup()
