"""Which package may import which: docs/architecture.md's drawing, held to.

Imports inside functions count as well, and so do those for type checkers only.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "captioner"

# From top to bottom: a package imports only what its own row names, and that stands further down.
MAY_IMPORT: dict[str, str] = {
    "__main__": "commands version",
    "hydra_plugins": "commands config sweeps",
    "__init__": "api version",
    "api": "commands build inference data errors",
    "commands": (
        "demo leaderboard export build config runs validation inspection inference "
        "evaluation training models data version files restore checks progress errors"
    ),
    "sweeps": "leaderboard runs files errors",
    "demo": "build inference evaluation data checks errors",
    "leaderboard": "runs evaluation files restore progress errors",
    "build": (
        "config runs validation inspection inference evaluation training features generation "
        "models data ops profiling files restore errors"
    ),
    "config": "files restore checks errors",
    "runs": "data files restore errors",
    "export": "inference generation models data version files errors",
    "validation": "inspection inference evaluation training models data errors",
    "inspection": "inference evaluation training generation models data",
    "inference": "generation models data errors",
    "evaluation": "data version files restore checks progress errors",
    "training": "generation models data ops profiling progress version files restore errors",
    "features": "models data progress files restore errors",
    "generation": "errors",
    "models": "ops profiling restore errors",
    "data": "ops progress files restore errors",
    "ops": "errors",
    "profiling": "",
    "progress": "",
    "files": "errors",
    "restore": "errors",
    "checks": "errors",
    "errors": "",
    "version": "",
}
# (from, to): the reason. At most two.
EXCEPTIONS: dict[tuple[str, str], str] = {}
READS_CONFIGURATION = {"commands", "build", "hydra_plugins"}


def imports(path: Path) -> Iterator[str]:
    """The full names of the modules, or of what is taken from them, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def arrows() -> dict[tuple[str, str], list[str]]:
    """From one package, or module at the top, to another: the files that import so."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "src" / "hydra_plugins").glob("*.py")]:
        inside = path.is_relative_to(SOURCE)
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py") if inside else "hydra_plugins"
        for name in imports(path):
            package, to = [*name.split("."), "__init__"][:2]
            if package == "captioner" and to != own:
                found.setdefault((own, to), []).append(str(path.relative_to(ROOT)))
    return found


def test_the_table_names_every_package_and_module_at_the_top() -> None:
    packages = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in SOURCE.glob("*.py")}
    assert packages | modules | {"hydra_plugins"} == set(MAY_IMPORT)
    plain = {"errors", "files", "restore", "checks", "profiling", "progress"}
    assert modules == {"__init__", "__main__", "api", "version"} | plain
    assert len(packages | modules) <= 30


def test_the_table_points_downwards() -> None:
    rows = list(MAY_IMPORT)
    for number, (package, allowed) in enumerate(MAY_IMPORT.items()):
        assert set(allowed.split()) <= set(rows[number + 1 :]), package


def test_imports_are_those_of_the_table() -> None:
    wrong = {
        arrow: files
        for arrow, files in arrows().items()
        if arrow[1] not in MAY_IMPORT[arrow[0]].split() and arrow not in EXCEPTIONS
    }
    assert wrong == {}
    assert len(EXCEPTIONS) <= 2 and set(EXCEPTIONS) <= set(arrows())


def test_the_table_allows_nothing_that_is_not_used() -> None:
    allowed = {(package, one) for package, row in MAY_IMPORT.items() for one in row.split()}
    assert sorted(allowed - set(arrows())) == []


def test_configuration_is_read_by_commands_and_build_alone() -> None:
    readers = {package for package, imported in arrows() if imported == "config"}
    assert readers <= READS_CONFIGURATION


@pytest.mark.parametrize("package", ["benchmarks", "scripts", "tests"])
def test_the_package_knows_nothing_of_what_is_not_installed(package: str) -> None:
    for path in (ROOT / "src").rglob("*.py"):
        assert not any(name.split(".")[0] == package for name in imports(path)), path


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    patterns = pytestconfig.getini("norecursedirs")
    root = Path(__file__).parent
    folders = {part for path in root.rglob("test_*.py") for part in path.relative_to(root).parts}
    assert [one for one in sorted(folders) for p in patterns if fnmatch(one, p)] == []
