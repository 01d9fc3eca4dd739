"""Export a trained model: `export.py checkpoint=best.pt out=my_model`, or format=onnx."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("export")
