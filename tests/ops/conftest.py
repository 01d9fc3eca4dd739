"""The CUDA sources compiled with g++ over tests/emulation: as operators, and as programs."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from sanitized_programs import persistent_sources, plain_sources

REPOSITORY = Path(__file__).parents[2]
CSRC, EMULATION = REPOSITORY / "csrc", REPOSITORY / "tests" / "emulation"
TORCH = Path(torch.__file__).parent

ENGINE = [EMULATION / "emulation.cpp", EMULATION / "fibre.cpp"]
KERNELS = sorted((CSRC / "cuda").glob("*.cu"))
OPERATOR = [CSRC / "ops.cpp", CSRC / "lstm_shape.cpp", *sorted((CSRC / "cuda").glob("*.cpp"))]

FLAGS = [
    "-std=c++17",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",  # unroll
    "-fno-strict-aliasing",  # as device code, which reads any buffer as vectors
    f"-I{EMULATION}",
    f"-isystem{TORCH / 'include'}",
]
# One word renames C++ namespace and operators, so that both builds can live in one process.
AS_OPERATOR = [
    "-O1",
    "-fPIC",
    "-Wno-attributes",  # tensors are hidden symbols, which the real build hides all around
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-Dcaptioner=captioner_emulated",
    "-DCAPTIONER_CUDA_KEY=CPU",
]
# With sanitizers -O1 takes twice as long to compile as -Og, more than it saves in these few runs.
SANITIZED = ["-Og", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


class Compiler:
    """g++ with its results kept in `folder`, which belongs to one state of all sources."""

    cuda = CSRC / "cuda"
    kernels = KERNELS
    emulation = EMULATION

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def operators(self) -> Path:
        """The library that registers csrc/cuda for tensors on the CPU."""
        sources = [self._all_in_one([*OPERATOR, EMULATION / "torch_cuda.cpp"]), *KERNELS, *ENGINE]
        # Its own stand-ins come before functions of the same names in torch.
        link = ["-shared", "-Wl,-Bsymbolic", f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-ldl"]
        return self._build("operators.so", dict.fromkeys(sources, AS_OPERATOR), link)

    def _all_in_one(self, sources: Sequence[Path]) -> Path:
        """A source that includes the others, which read torch's headers once in place of often."""
        unfinished, target = (
            self.folder / f"operator.{os.getpid()}.tmp",
            self.folder / "operator.cpp",
        )
        unfinished.write_text("".join(f'#include "{source}"\n' for source in sources))
        unfinished.replace(target)
        return target

    def program(self, name: str, sources: list[Path], *, faulty: Sequence[Path] = ()) -> Path:
        """A program of `sources` and the emulation, under AddressSanitizer and UBSan.

        `faulty` are changed copies of some sources: what they instantiate goes before what the
        originals do.
        """
        flags = dict.fromkeys((*faulty, *sources, *ENGINE), SANITIZED)
        return self._build(name, flags, ["-rdynamic", "-ldl"])

    def _build(self, name: str, flags: Mapping[Path, list[str]], link: list[str]) -> Path:
        """A program or library of sources, each with its flags."""
        target = self.folder / name
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the test run need it, too
            if not target.exists():
                with ThreadPoolExecutor(max_workers=2) as pool:
                    objects = [*pool.map(self._object, flags, flags.values())]
                of_link = [flag for flag in SANITIZED if flag in next(iter(flags.values()))]
                self._run([*of_link, *map(str, objects), *link], target)
        return target

    def _object(self, source: Path, flags: list[str]) -> Path:
        key = hashlib.sha256(" ".join([source.read_text(), *flags]).encode())
        target = self.folder / f"{source.stem}-{key.hexdigest()[:12]}.o"
        if not target.exists():
            near = f"-iquote{CSRC / 'cuda'}"  # for a changed copy that lies elsewhere
            self._run([*FLAGS, near, *flags, "-c", "-x", "c++", str(source)], target)
        return target

    @staticmethod
    def _run(arguments: list[str], target: Path) -> None:
        unfinished = target.with_suffix(f".{id(target)}.tmp")
        done = subprocess.run(
            ["g++", *arguments, "-o", str(unfinished)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        unfinished.replace(target)


@pytest.fixture(scope="session")
def compiler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """A compiler whose results outlive the session while no source, flag or torch changes."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the CUDA sources for the host")
    cache = getattr(request.config, "cache", None)
    root = Path(cache.mkdir("cuda_emulation")) if cache else tmp_path_factory.mktemp("emulation")
    sources = sorted(x for folder in (CSRC, EMULATION) for x in folder.rglob("*") if x.is_file())
    text = [torch.__version__, *FLAGS, *AS_OPERATOR, *SANITIZED, *(x.read_text() for x in sources)]
    folder = root / hashlib.sha256("\0".join(text).encode()).hexdigest()[:16]
    for old in root.iterdir():
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    return Compiler(folder)


class Emulated:
    """The loaded operators and what their library says of its kernels."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(library)
        self.library = library
        self.ops = torch.ops.captioner_emulated
        self._c = ctypes.CDLL(str(library))
        self._c.emulation_launches.restype = ctypes.c_char_p

    def reset(self) -> None:
        """Forget all launches so far."""
        self._c.emulation_reset()

    def launches(self) -> dict[str, int]:
        """How often each kernel was launched, by its full name."""
        lines = self._c.emulation_launches().decode().splitlines()
        return {name: int(count) for count, name in (line.split(" ", 1) for line in lines)}


@pytest.fixture(scope="session")
def emulated(compiler: Compiler) -> Emulated:
    """The operators of csrc/cuda for CPU tensors, as torch.ops.captioner_emulated."""
    return Emulated(compiler.operators())


@pytest.fixture(scope="session")
def sanitized(compiler: Compiler) -> Path:
    """The program of the plain kernels: see emulation/sanitized.cpp."""
    return compiler.program("sanitized", plain_sources(compiler))


@pytest.fixture(scope="session")
def persistent(compiler: Compiler) -> Path:
    """The program of the persistent kernels: see emulation/persistent.cpp."""
    return compiler.program("persistent", persistent_sources(compiler))
