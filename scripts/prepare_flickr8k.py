"""Bring Flickr8k into a folder, or check the one that is there: `root=data/flickr8k`."""

from __future__ import annotations

import dataclasses

from captioner.commands.cli import run_command
from captioner.config import PrepareConfig


def main(config: PrepareConfig) -> str:
    """Download what is missing and verify it; the report."""
    from captioner.data.formats.prepare import prepare_flickr8k

    return prepare_flickr8k(**dataclasses.asdict(config))


if __name__ == "__main__":
    run_command(main, __file__)
