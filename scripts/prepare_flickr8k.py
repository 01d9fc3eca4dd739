"""Bring Flickr8k into a folder, or check the one that is there: `root=data/flickr8k`."""

from __future__ import annotations

from captioner.commands.cli import run_command

if __name__ == "__main__":
    run_command("prepare_flickr8k")
