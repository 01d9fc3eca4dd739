"""Builds the two libraries of csrc/; all else stands in pyproject.toml.

    python setup.py build_ext --inplace      # into src/captioner/ops/ and src/captioner/evaluation/

CAPTIONER_CUDA=auto|0|1   CUDA kernels too: if nvcc is there, and a GPU or TORCH_CUDA_ARCH_LIST
                          that says what for; never; always
CAPTIONER_SANITIZE=1      with AddressSanitizer and UndefinedBehaviorSanitizer

The LSTM's uses PyTorch's stable ABI of 2.11 and Python's of 3.10: one build serves both from there
on. That of csrc/evaluation, for scores, uses neither. Without a compiler, or where something goes
wrong, the package is installed without them and says so, here and whenever an LSTM is used; with
CAPTIONER_CUDA=1 it is an error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TORCH_TARGET = "0x020b000000000000"  # 2.11
LSTM, SCORING = "captioner.ops._extension", "captioner.evaluation._scoring"
NAMES = {LSTM: "LSTM", SCORING: "scores"}
COMMON = ["-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"]
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g"]


def say_without(what: str, reason: str) -> None:
    """Say which library is missing, and why."""
    print(f"captioner is installed without its compiled {what}: {reason}", file=sys.stderr)


def sanitized() -> list[str]:
    """Options that come after all others."""
    return CHECKS if os.environ.get("CAPTIONER_SANITIZE") == "1" else []


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


def scoring() -> Extension:
    """Scores: plain C++, which must round every product as Python does."""
    return Extension(
        SCORING,
        [str(path) for path in sorted(Path("csrc", "evaluation").glob("*.cpp"))],
        language="c++",
        extra_compile_args=[*COMMON, "-pthread", "-ffp-contract=off", *sanitized()],
        extra_link_args=["-g0", "-pthread", *sanitized()],
        py_limited_api=True,
        optional=True,
    )


def lstm() -> Extension:
    """The LSTM and what is computed beside it: the sources and flags."""
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
    common = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    if cuda:
        common.append("-DUSE_CUDA")  # declares the stream functions of the stable ABI
    cxx = [*COMMON, *common, *system, *sanitized()]
    make: Any = CUDAExtension if cuda else CppExtension
    return make(
        LSTM,
        sources,
        extra_compile_args={"cxx": cxx, "nvcc": ["-std=c++17", *common, "-O3", "--threads=2"]},
        extra_link_args=sanitized() or ["-g0"],
        py_limited_api=True,
        optional=True,
    )


def build_or_explain(base: type[build_ext]) -> type[build_ext]:
    """A build_ext that leaves out in one sentence what it cannot build."""

    class Build(base):  # type: ignore[valid-type, misc]
        def run(self) -> None:
            with explained(" and ".join(NAMES[one.name] for one in self.extensions)):
                super().run()

        def build_extension(self, ext: Extension) -> None:
            with explained(NAMES[ext.name]):
                super().build_extension(ext)

    return Build


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """An error inside becomes one sentence, unless CUDA was asked for."""
    try:
        yield
    except Exception as error:
        if os.environ.get("CAPTIONER_CUDA") == "1":
            raise
        say_without(what, str(error).strip().splitlines()[-1])


if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
    say_without(" and ".join(NAMES.values()), "no C++ compiler was found")
    setup()
elif (reason := no_torch()) is not None:
    say_without(NAMES[LSTM], reason)
    setup(ext_modules=[scoring()], cmdclass={"build_ext": build_or_explain(build_ext)})
else:
    from torch.utils.cpp_extension import BuildExtension

    built_by = build_or_explain(BuildExtension)
    setup(ext_modules=[scoring(), lstm()], cmdclass={"build_ext": built_by})
