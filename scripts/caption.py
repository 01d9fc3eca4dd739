"""Caption photos: `python scripts/caption.py checkpoint=best.pt images=photo.jpg`."""

from __future__ import annotations

from collections.abc import Iterator

from captioner.commands.cli import run_command
from captioner.config import CaptionConfig


def main(config: CaptionConfig) -> Iterator[str]:
    """The lines of each image, as soon as it has its captions."""
    from captioner.commands.caption import caption

    return caption(config)


if __name__ == "__main__":
    run_command(main, __file__)
