"""Let a language model write: `sample.py checkpoint=best.pt prompt="ROMEO:" temperature=0.8`."""

from __future__ import annotations

from pathlib import Path

from captioner.commands.cli import run_command
from captioner.commands.text import sample_text
from captioner.config import SampleConfig


def main(config: SampleConfig) -> None:
    """Print the first text while it is written, then the others."""
    written = 0

    def show(number: int, text: str) -> None:
        nonlocal written
        if number == 0:
            # The prompt comes first, once it is known that it can be encoded.
            print(text if written else config.prompt + text, end="", flush=True)
            written += 1

    prompt, samples = sample_text(config, show)
    print("" if written else prompt)
    for number, one in enumerate(samples[1:], 2):
        print(f"\n--- {number} of {len(samples)} ---\n{prompt}{one.text}")


if __name__ == "__main__":
    configs = Path(__file__).parents[1] / "configs"
    run_command(main, name="sample", configs=configs, literal=("prompt", "stop"))
