"""Caption photos: `python scripts/caption.py checkpoint=best.pt images=photo.jpg`."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("caption")
