"""Let a language model write: `sample.py checkpoint=best.pt prompt="ROMEO:" temperature=0.8`."""

from __future__ import annotations

from collections.abc import Iterator

from captioner.commands.cli import run_command
from captioner.config import SampleConfig


def main(config: SampleConfig) -> Iterator[str]:
    """Print the first text while it is written, then the others."""
    from captioner.commands.sample import sample_text

    written = False

    def show(number: int, text: str) -> None:
        nonlocal written
        if number == 0:
            # The prompt comes first, once it is known that it can be encoded.
            print(text if written else config.prompt + text, end="", flush=True)
            written = True

    prompt, samples = sample_text(config, show)
    yield "" if written else prompt
    for number, one in enumerate(samples[1:], 2):
        yield f"\n--- {number} of {len(samples)} ---\n{prompt}{one.text}"


if __name__ == "__main__":
    run_command(main, __file__, literal=("prompt", "stop"))
