"""What the pages name exists: links, anchors, files, functions; and the README stays short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from documentation import PAGES, REPOSITORY, anchors, blocks, links

SOURCE = REPOSITORY / "src/captioner"
LONGEST_README = 170
# Paths that a page shows as examples, or that are made on the user's machine.
NOT_THERE = (
    r"(outputs|data|photos|ptb|RUN|a|b|nic|neon|shakespeare|my_model|holiday|coco|tests/foo)/"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {link} is none of {anchors(path)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_code_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    for code in re.findall(r"`([\w./-]+/[\w./-]*)`", text):
        if re.match(NOT_THERE, code) or Path(code).stem in EXAMPLES or "/" not in code.strip("/"):
            continue
        places = (REPOSITORY, SOURCE, REPOSITORY / "benchmarks", REPOSITORY / "benchmarks/results")
        found = any((place / code).exists() for place in places)
        assert found or not _begins_like_a_folder(code), f"{page.name} names {code}"


EXAMPLES = ("tsv", "tiny", "mine", "NAME")  # names that extending.md makes up


def _begins_like_a_folder(code: str) -> bool:
    """Whether a path begins with a folder of the repository or of the package."""
    first = code.split("/")[0]
    if first == ".cache":  # what commands leave behind
        return False
    return any((place / first).is_dir() for place in (REPOSITORY, SOURCE))


def test_the_readme_is_two_screens() -> None:
    lines = (REPOSITORY / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= LONGEST_README


def test_records_that_results_name_exist() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    for record in re.findall(r"\| ([\w/.-]+\.json) \|", text):
        assert (REPOSITORY / "benchmarks/results" / record).exists(), record


def test_functions_that_the_architecture_walks_through_exist() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text("utf-8")
    named = re.findall(r"`([\w./]+\.py)::([\w.]+)`", text)
    assert len(named) > 30, "the walk names its functions as path::function"
    for path, name in named:
        place = (REPOSITORY if path.startswith("scripts/") else SOURCE) / path
        assert place.exists(), path
        assert name in _defined(place), f"{path} has no {name}"


def _defined(path: Path) -> set[str]:
    """Functions, classes and methods (Class.method) of a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{x.name}" for x in node.body if isinstance(x, ast.FunctionDef)}
    return found


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {Path(link.partition("#")[0]).name for link in links(REPOSITORY / "README.md")}
    pages = {page.name for page in PAGES} - {"README.md"}
    assert pages <= linked


RUN = [block for page in PAGES for block in blocks(page) if block.marked]


@pytest.mark.parametrize("block", RUN, ids=[block.name for block in RUN])
def test_examples_run(block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.name, "exec"), {"__name__": "example"})


def test_extending_has_an_example_of_each_part() -> None:
    page = REPOSITORY / "docs/extending.md"
    lines = page.read_text("utf-8").splitlines()
    titles = [(n, line) for n, line in enumerate(lines, 1) if line.startswith("## ")]
    found = {
        [title for n, title in titles if n < block.line][-1] for block in RUN if block.page == page
    }
    for part in ("data set", "encoder", "metric", "generation method", "operator"):
        assert any(part in title for title in found), part
