"""What a configuration would take of memory, reckoned before anything is allocated.

Lower bounds, of what is needed in any case: nothing is refused that would fit.
"""

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from captioner import config as schema
from captioner.errors import ConfigError, DataError
from captioner.models.cells import ROUNDS
from captioner.training.memory import free_memory

log = logging.getLogger(__name__)
Sizes = Mapping[str, int]  # values by their keys on the command line
NUMBER = 4  # bytes of a float32
# Numbers that each optimiser keeps for a weight, without momentum.
STATE = {"adam": 2, "adamw": 2, "rmsprop": 1, "sgd": 0}
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "layer_norm_lstm": 4, "mogrifier_lstm": 4}


def require_memory(
    what: str, sizes: Sizes, needs: Callable[[Sizes], float], device: torch.device
) -> None:
    """ConfigError unless `needs` of the sizes, in bytes, are free on the device.

    Of the sizes it names the one that takes most, and the largest value that would fit.
    """
    free, needed = free_memory(device), needs(sizes)
    if free is None or needed <= free:
        return
    key = min(sizes, key=lambda one: needs({**sizes, one: 1}))
    fits, too_many = 0, sizes[key]
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if needs({**sizes, key: middle}) <= free:
            fits = middle
        else:
            too_many = middle
    # The reckoning is not exact, so the number need not look so.
    digits = max(0, len(str(fits)) - 2)
    largest = fits // 10**digits * 10**digits
    advice = f"; the largest that fits is {largest:,}" if fits else ""
    raise ConfigError(
        f"{key}={sizes[key]}: {what} would take {_gigabytes(needed)} of memory, and "
        f"{_gigabytes(free)} are free{advice}"
    )


def require_memory_for_training(
    config: schema.TrainConfig,
    device: torch.device,
    *,
    vocab_size: int = 1,
    feature_dim: int = 1,
    tokens: int = 0,
) -> None:
    """ConfigError unless there is memory on the device for weights, gradients and the optimiser's
    state of all replicas, and for what the recurrent layers keep of the `tokens` of a batch in
    those that are computed at a time, at least one a thread. What is not known yet counts least.
    """
    copies = 2 + STATE[config.optimizer.name] + (config.optimizer.momentum > 0)
    copies += config.trainer.ema is not None
    keys = ("embedding_dim", "hidden_size", "num_layers", "attention_dim")
    of_model = vars(config.model)
    sizes = {f"model.{key}": of_model[key] for key in keys if key in of_model}
    at_a_time = torch.get_num_threads() if device.type == "cpu" else 1
    replicas = {"trainer.replicas": config.trainer.replicas}

    def needs(sizes: Sizes) -> float:
        weights = count_weights(config, sizes, vocab_size=vocab_size, feature_dim=feature_dim)
        # Of every token the pre-activations of the gates, the cell and the output of each layer.
        layers = sizes["model.num_layers"] * (2 + GATES[config.rnn.kind])
        kept = tokens * (sizes["model.embedding_dim"] + layers * sizes["model.hidden_size"])
        count = sizes["trainer.replicas"]
        return NUMBER * (copies * weights * count + kept * min(count, at_a_time))

    require_memory("training", {**sizes, "trainer.replicas": 1}, needs, device)
    # Where one fits, too many are what is to be told.
    require_memory("training", replicas, lambda own: needs({**sizes, **own}), device)


def count_weights(
    config: schema.TrainConfig, sizes: Sizes, *, vocab_size: int, feature_dim: int
) -> int:
    """How many weights a model of these sizes has at least: those of its embeddings, its recurrent
    layers, its output layer, its image's projection and its attention's.

    By arithmetic: to build it, on the meta device too, takes seconds of imports.
    """
    hidden, layers = sizes["model.hidden_size"], sizes["model.num_layers"]
    tied = config.model.tie_embeddings
    embedding = hidden if tied else sizes["model.embedding_dim"]
    attention = sizes.get("model.attention_dim", 0)
    words = vocab_size * (embedding + (0 if tied else hidden) + 1)
    below = embedding + (layers - 1) * hidden  # what all layers take from below them
    recurrent = GATES[config.rnn.kind] * hidden * (below + layers * (hidden + 2))
    if config.rnn.kind == "layer_norm_lstm":
        recurrent += 10 * layers * hidden  # gains of both products and the cell, its bias
    if config.rnn.kind == "mogrifier_lstm":
        recurrent += (config.rnn.rounds or ROUNDS) * hidden * below
    image = 0 if isinstance(config.data, schema.TextData) else feature_dim * embedding
    return words + recurrent + image + attention * (feature_dim + hidden)


def require_memory_for_images(
    size: int, batch: dict[str, int], device: torch.device, *, images: int
) -> None:
    """ConfigError unless a `batch` (key and value) of so many `images` of `size` pixels is free on
    the device twice: as it is read, and as it is encoded."""

    def needs(sizes: Sizes) -> float:
        count = math.prod(value for key, value in sizes.items() if key != "encoder.size")
        return 2 * NUMBER * 3 * min(count, images) * sizes["encoder.size"] ** 2

    require_memory("encoding images", {"encoder.size": size, **batch}, needs, device)


def require_memory_for_captions(
    config: schema.GenerationConfig, device: torch.device, *, vocab_size: int, images: int
) -> None:
    """ConfigError unless a batch of so many `images` can be captioned: two copies of every sentence
    that is followed, token ids and log-probabilities, and two of the next word's distribution."""
    width = {"beam": "beam_size", "sample": "samples"}.get(config.method)
    keys = [*([width] if width else []), "batch_size", "max_length"]
    sizes = {f"generation.{key}": getattr(config, key) for key in keys}

    def needs(sizes: Sizes) -> float:
        batch, longest = sizes["generation.batch_size"], sizes["generation.max_length"]
        rows = min(batch, images) * sizes.get(f"generation.{width}", 1)
        return 2 * rows * (12 * longest + NUMBER * vocab_size)

    require_memory("generation", sizes, needs, device)


def require_memory_for_text(
    n: int, length: int, device: torch.device, *, vocab_size: int, state: int
) -> None:
    """ConfigError unless `n` texts of `length` tokens can be drawn beside each other; `state`:
    numbers that the model keeps of each."""

    def needs(sizes: Sizes) -> float:
        return sizes["n"] * (20 * sizes["length"] + NUMBER * (2 * vocab_size + state))

    require_memory("writing", {"n": n, "length": length}, needs, device)


def require_disk(folder: Path, needed: int) -> None:
    """DataError unless so many bytes of features are free where `folder` is, or will be; says so
    where they are."""
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"the features of all images would take {needed / 1e6:,.1f} MB in "
            f"encoder.cache_dir={folder}, and {free / 1e6:,.1f} MB are free there"
        )
    log.info("features: %s MB are written to %s", f"{needed / 1e6:,.1f}", folder)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.{1 if size < 1e10 else 0}f} GB" if size < 1e18 else "far too much"
