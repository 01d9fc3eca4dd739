"""Export a trained model: `export.py checkpoint=best.pt out=my_model`, or format=onnx."""

from __future__ import annotations

from captioner.commands.cli import run_command
from captioner.config import ExportConfig


def main(config: ExportConfig) -> list[str]:
    """Export, and say what came of it."""
    from captioner.commands.export import export

    return export(config)


if __name__ == "__main__":
    run_command(main, __file__)
