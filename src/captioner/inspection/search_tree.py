"""What a beam search looked at, as a tree: every prefix that was in the beam at some step."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from captioner.generation import Hypothesis

Prefix = tuple[int, ...]


def search_tree(found: Sequence[Sequence[Hypothesis]]) -> dict[Prefix, float]:
    """The prefixes of all hypotheses with the log-probability of each one's last token.

    `found` are the results of searches of one image with `max_length` 1, 2, 3, ...: the beams after
    so many steps. Parents come before their children.
    """
    tree: dict[Prefix, float] = {}
    for hypotheses in found:
        for one in hypotheses:
            for end, log_prob in enumerate(one.log_probs[: len(one.token_ids)], 1):
                tree.setdefault(one.token_ids[:end], log_prob)
    return tree


def draw_search_tree(
    axes: Any, tree: dict[Prefix, float], *, best: Prefix, word: Callable[[int], str]
) -> None:
    """Draw the tree on matplotlib axes, a column a step; `best` is the sentence that won.

    Under each word is its probability after those before it; probable words have thick lines.
    """
    rows = _rows(tree)
    box = {"boxstyle": "round,pad=0.15", "color": "white", "linewidth": 0}
    for prefix, log_prob in tree.items():
        x, y, p = len(prefix), rows[prefix], math.exp(log_prob)
        won = best[: len(prefix)] == prefix
        style: dict[str, Any] = {"color": "#2a6fbb" if won else "#999999"}
        if len(prefix) > 1:
            line = [rows[prefix[:-1]], y]
            axes.plot([x - 1, x], line, zorder=1, linewidth=0.5 + 3 * p, **style)
        style |= {"weight": "bold" if won else "normal", "ha": "center", "va": "center"}
        axes.text(x, y, f"{word(prefix[-1])}\n{p:.2f}", size=7, zorder=2, bbox=box, **style)
    axes.set(xlim=(0.5, max(map(len, tree)) + 0.5), ylim=(max(rows.values()) + 0.7, -0.7))
    axes.axis("off")


def _rows(tree: dict[Prefix, float]) -> dict[Prefix, float]:
    """Leaves one under another, siblings together, a parent in the middle of its children."""
    children: defaultdict[Prefix, list[Prefix]] = defaultdict(list)
    for prefix in tree:
        children[prefix[:-1]].append(prefix)
    rows: dict[Prefix, float] = {}
    leaves = 0

    def place(prefix: Prefix) -> float:
        nonlocal leaves
        below = [place(child) for child in children.get(prefix, ())]
        rows[prefix] = sum(below) / len(below) if below else float(leaves)
        leaves += not below
        return rows[prefix]

    place(())
    return rows
