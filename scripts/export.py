"""Take a model out of the house: `export.py checkpoint=best.pt out=my_model`, or format=onnx."""

from __future__ import annotations

from pathlib import Path

from captioner.commands.cli import run_command
from captioner.commands.export import export
from captioner.config import ExportConfig


def main(config: ExportConfig) -> None:
    """Write the folder or the ONNX file; say what was checked."""
    for line in export(config):
        print(line)


if __name__ == "__main__":
    run_command(main, name="export", configs=Path(__file__).parents[1] / "configs")
