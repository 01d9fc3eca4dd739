"""The pages of the documentation, and what is written in them: commands, code, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
SHOWN_ELSEWHERE = ("text", "python")  # languages of blocks that hold no commands
BEGINS = r"(?:\w+=\S+ )*(?:python|torchrun|make)\b"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and whether `<!-- run -->` stands above."""

    page: Path
    line: int
    language: str
    text: str
    marked: bool

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text("utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if start is None:
            start, language = number, line[3:].strip()
            continue
        above = lines[start - 2] if start > 1 else ""
        yield Block(
            page, start, language, "\n".join(lines[start : number - 1]), above == "<!-- run -->"
        )
        start = None


def commands() -> list[str]:
    """Every command of every page, in a block or as inline code, once each."""
    found: dict[str, None] = {}
    for page in PAGES:
        inside = [b.text for b in blocks(page) if b.language not in SHOWN_ELSEWHERE]
        for line in "\n".join(inside).splitlines():
            command = re.sub(r"(^|\s{2,})#.*", "", line).strip()
            if re.match(BEGINS, command):
                found[command] = None
        outside = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
        for code in re.findall(r"`([^`]+)`", outside):
            if re.match(BEGINS + " ", code):
                found[" ".join(code.split())] = None
    return list(found)


def commands_of_configs() -> list[str]:
    """The commands in the comments at the head of the files in configs/."""
    found = []
    for path in sorted((REPOSITORY / "configs").rglob("*.yaml")):
        for line in path.read_text("utf-8").splitlines():
            match = re.match(r"#\s+(python scripts/.*)", line)
            if match and line.startswith("#"):
                found.append(re.sub(r"\s{3,}.*", "", match[1]).strip())
    return found


def parts(command: str) -> tuple[str, list[str]]:
    """A script's name and its arguments; ("", []) where a command runs none."""
    words = shlex.split(command)
    for at, word in enumerate(words):
        if word.startswith("scripts/"):
            return Path(word).stem, words[at + 1 :]
    return "", []


def links(page: Path) -> list[str]:
    """The targets of a page's links and images that lie in the repository."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    return [x for x in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in x]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    outside = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", outside, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
