"""Caption photos: `python scripts/caption.py checkpoint=best.pt images=photo.jpg`."""

from __future__ import annotations

import math
from pathlib import Path

from captioner.commands.cli import run_command
from captioner.commands.evaluate import caption_files, captions_as_json
from captioner.config import CaptionConfig
from captioner.files import write_json


def main(config: CaptionConfig) -> None:
    """Print the n-best captions of each picture with their probabilities."""
    captioned = []
    for path, captions in caption_files(config):
        captioned.append((path, captions))
        print(path)
        for caption in captions:
            print(f"  {math.exp(caption.log_prob):.2e}  {caption.text}")
    if config.out is not None:
        write_json(config.out, captions_as_json(captioned))


if __name__ == "__main__":
    run_command(main, name="caption", configs=Path(__file__).parents[1] / "configs")
