"""The fuzzer's figures at the end of `make fuzz`."""

from __future__ import annotations

from collections import Counter

import pytest
from fuzz.cases import FACTOR, FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FACTOR == 1 or not FIGURES:
        return
    total: Counter[str] = Counter()
    terminalreporter.section("cases of the fuzzer")
    for name, counts in sorted(FIGURES.items()):
        total += counts
        terminalreporter.write_line(_line(name, counts))
    terminalreporter.write_line(_line("all", total))


def _line(name: str, counts: Counter[str]) -> str:
    ends = ", ".join(f"{counts[end]} {end}" for end in ("clear", "taken"))
    return f"{name}: {counts.total()} tried, {ends}"
