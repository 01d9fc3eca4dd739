"""Bring Flickr8k into a folder, or check the one that is there: `root=data/flickr8k`."""

from __future__ import annotations

from pathlib import Path

from captioner.commands.cli import run_command
from captioner.config import PrepareConfig
from captioner.data.formats.prepare import prepare_flickr8k


def main(config: PrepareConfig) -> None:
    """Download what is missing, verify it, and print the report."""
    print(
        prepare_flickr8k(
            root=Path(config.root),
            download=config.download,
            images_url=config.images_url,
            text_url=config.text_url,
            images_sha256=config.images_sha256,
            text_sha256=config.text_sha256,
        )
    )


if __name__ == "__main__":
    run_command(main, name="prepare_flickr8k", configs=Path(__file__).parents[1] / "configs")
