"""Runs a notebook's cells in IPython, in this process: script_server.py has imported torch for it.

Arguments: the notebook, and where the outputs of all cells go, as a list in JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output


class Shell(InteractiveShell):
    """IPython without a window that figures might be shown in."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Nothing is to be done."""


def run_cells(sources: list[str]) -> list[dict[str, Any]]:
    """The cells' outputs as nbformat has them, of which the first error is raised."""
    shell = Shell.instance()
    shell.enable_matplotlib("inline")  # as in Jupyter, figures are outputs of their cell
    outputs: list[dict[str, Any]] = []
    for source in sources:
        with capture_output() as said:
            done = shell.run_cell(source, store_history=True)
        for name, text in (("stdout", said.stdout), ("stderr", said.stderr)):
            outputs += [{"output_type": "stream", "name": name, "text": text}] if text else []
        outputs += [{"output_type": "display_data", "data": one.data} for one in said.outputs]
        done.raise_error()
    return outputs


def main(notebook: str, out: str) -> None:
    """Run all code cells of a notebook, from top to bottom."""
    cells = json.loads(Path(notebook).read_text("utf-8"))["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    outputs = run_cells(["".join(source) for source in sources])
    Path(out).write_text(json.dumps(outputs, default=lambda raw: raw.decode("latin-1")))


if __name__ == "__main__":
    main(*sys.argv[1:])
