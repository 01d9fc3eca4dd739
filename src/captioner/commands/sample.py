"""What sample.py does: texts of language models."""

import dataclasses
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from captioner import config as schema
from captioner.build.checkpoint import TrainedLanguageModel, load_language_model
from captioner.build.components import pick_device
from captioner.build.memory import require_memory_for_text
from captioner.errors import DataError
from captioner.files import write_json
from captioner.inference.text import Listener, Sample, TextGenerator
from captioner.training.model_folder import weights_file

# Of the configuration, what is not the generator's.
_OWN = ("device", "threads", "checkpoint", "prompt", "chat", "out", "overwrite")
GAP = 3  # columns between two texts side by side


def sample(config: schema.SampleConfig) -> Iterator[str]:
    """Print the first text while it is written, then the others; of several checkpoints the texts
    side by side."""
    paths = schema.checkpoint_paths(config.checkpoint)
    if config.chat:
        yield from chat(config, sys.stdin)
    elif len(paths) == 1:
        yield from _one_voice(config)
    else:
        yield from _voices(config, paths)


def _one_voice(config: schema.SampleConfig) -> Iterator[str]:
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


def _voices(config: schema.SampleConfig, paths: Sequence[Path]) -> Iterator[str]:
    """The texts of all checkpoints, in columns of the terminal's width."""
    found = []
    for path in paths:
        one = dataclasses.replace(config, checkpoint=str(path), out=None)
        found.append(sample_text(one))
    names = [weights_file(path).resolve().parent.name for path in paths]
    if config.out is not None:
        voices = [
            {"checkpoint": str(path), "prompt": prompt, "samples": _as_json(samples)}
            for path, (prompt, samples) in zip(paths, found, strict=True)
        ]
        settings = {**dataclasses.asdict(config), "checkpoint": list(map(str, paths))}
        write_json(config.out, {**settings, "voices": voices})
    width = shutil.get_terminal_size().columns // len(paths) - GAP
    for number in range(config.n):
        texts = [
            f"[{name}]\n{p}{s[number].text}" for name, (p, s) in zip(names, found, strict=True)
        ]
        yield from side_by_side(texts, width=max(1, width))
        yield ""


def side_by_side(texts: Iterable[str], *, width: int) -> Iterator[str]:
    """Lines with all texts in columns of `width` characters, where their lines are broken."""
    wrapped = [
        [part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""]]
        for text in texts
    ]
    for row in zip_longest(*wrapped, fillvalue=""):
        yield (" " * GAP).join(f"{part:{width}}" for part in row).rstrip()


def chat(config: schema.SampleConfig, lines: Iterable[str]) -> Iterator[str]:
    """Continue the prompt, then line after line of `lines`: the model has read all that was written
    before. A line that it cannot read is answered with the reason."""
    trained = _load(config)
    generator = TextGenerator(trained.model, trained.codec, listener=_show)
    told, turns, prompts = "", [], [config.prompt] if config.prompt else []
    for number, line in enumerate(_asked(prompts, lines)):
        options = {**_options(config), "seed": config.seed + number}
        try:
            [answer] = generator.samples(told + line, **options)
        except DataError as error:
            yield str(error)
            continue
        # Nothing is known of a document after its end.
        told = "" if answer.finished == "document" else told + line + answer.text
        turns.append({"prompt": line, **dataclasses.asdict(answer)})
        if config.out is not None:
            write_json(config.out, {**dataclasses.asdict(config), "turns": turns})
        yield ""


def _show(number: int, text: str) -> None:
    print(text, end="", flush=True)


def _asked(prompts: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    """What is to be continued; on a terminal a sign asks for the next line."""
    yield from prompts
    terminal, following = sys.stdin.isatty() and lines is sys.stdin, iter(lines)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            yield next(following)
        except StopIteration:
            return


def sample_text(
    config: schema.SampleConfig, listener: Listener | None = None
) -> tuple[str, list[Sample]]:
    """The prompt as the model reads it, and what it writes after it; also into `out` as JSON.

    `listener` is called with a sample's number and its text as it grows.
    """
    trained = _load(config)
    codec = trained.codec
    prompt = codec.decode(codec.encode(config.prompt))
    found = TextGenerator(trained.model, codec, listener=listener).samples(
        config.prompt, **_options(config)
    )
    if config.out is not None:
        settings = dataclasses.asdict(config)
        write_json(config.out, {**settings, "prompt": prompt, "samples": _as_json(found)})
    return prompt, found


def _load(config: schema.SampleConfig) -> TrainedLanguageModel:
    """The first checkpoint's model, once it is known that its texts fit into memory."""
    device = pick_device(config.device)
    trained = load_language_model(schema.checkpoint_paths(config.checkpoint)[0], device=device)
    layers = trained.model.lstm
    require_memory_for_text(
        config.n,
        config.length,
        device,
        vocab_size=len(trained.vocabulary),
        state=2 * layers.num_layers * layers.hidden_size,
    )
    return trained


def _options(config: schema.SampleConfig) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in _OWN}


def _as_json(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in samples]
