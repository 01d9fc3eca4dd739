"""What sample.py does: texts of a language model."""

import dataclasses
from collections.abc import Iterator

from captioner import config as schema
from captioner.build.checkpoint import load_language_model
from captioner.build.components import pick_device
from captioner.build.memory import require_memory_for_text
from captioner.files import write_json
from captioner.inference.text import Listener, Sample, TextGenerator


def sample(config: schema.SampleConfig) -> Iterator[str]:
    """Print the first text while it is written, then the others."""
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


def sample_text(
    config: schema.SampleConfig, listener: Listener | None = None
) -> tuple[str, list[Sample]]:
    """The prompt as the model reads it, and what it writes after it; also into `out` as JSON.

    `listener` is called with a sample's number and its text as it grows.
    """
    device = pick_device(config.device)
    trained = load_language_model(config.checkpoint, device=device)
    codec = trained.codec
    prompt = codec.decode(codec.encode(config.prompt))
    settings = dataclasses.asdict(config)
    own = ("device", "threads", "checkpoint", "prompt", "out", "overwrite")  # else the generator's
    options = {key: value for key, value in settings.items() if key not in own}
    layers = trained.model.lstm
    require_memory_for_text(
        config.n,
        config.length,
        device,
        vocab_size=len(trained.vocabulary),
        state=2 * layers.num_layers * layers.hidden_size,
    )
    generator = TextGenerator(trained.model, codec, listener=listener)
    found = generator.samples(config.prompt, **options)
    if config.out is not None:
        samples = [dataclasses.asdict(one) for one in found]
        write_json(config.out, {**settings, "prompt": prompt, "samples": samples})
    return prompt, found
