"""What would not fit is refused before it is allocated, with the largest that fits."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config

from captioner import config as schema
from captioner.build import memory
from captioner.build.memory import (
    count_weights,
    require_memory,
    require_memory_for_captions,
    require_memory_for_images,
    require_memory_for_text,
    require_memory_for_training,
)
from captioner.build.models import build_captioner, build_language_model
from captioner.errors import ConfigError
from captioner.training.memory import free_memory

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")
SCENES = compose_config("train", ["model=layered_attention"], configs=CONFIGS)
OVERRIDES = ["data=python_source", "encoder=none", "trainer.best_metric=loss"]
TEXT = compose_config("train", OVERRIDES, configs=CONFIGS)
FREE = 21 * 10**9


@pytest.fixture(autouse=True)
def _a_machine_of_21_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: FREE)


def changed(config: Any, **model: Any) -> Any:
    """The configuration with other sizes of its model."""
    return replace(config, model=replace(config.model, **model))


@pytest.mark.parametrize(
    ("sizes", "key"),
    [
        ({"hidden_size": 10**6}, "model.hidden_size"),
        ({"embedding_dim": 10**9}, "model.embedding_dim"),
        ({"attention_dim": 8 * 10**7}, "model.attention_dim"),
        ({"hidden_size": 2**31 - 1}, "model.hidden_size"),
        ({"hidden_size": 20_000, "num_layers": 50}, "model.hidden_size"),
    ],
)
def test_the_size_that_takes_most_is_named(sizes: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}={sizes[key.split('.')[1]]}: training") as error:
        require_memory_for_training(changed(SCENES, **sizes), CPU)
    assert "21 GB are free; the largest that fits is" in str(error.value)
    largest = int(str(error.value).split()[-1].replace(",", ""))
    fitting = {**sizes, key.split(".")[1]: largest // 8 * 8}
    require_memory_for_training(changed(SCENES, **fitting), CPU)


def test_of_more_replicas_than_fit_the_number_that_does_is_told() -> None:
    """A single one fits, though the other sizes take as much."""

    def require(replicas: int) -> None:
        trainer = replace(SCENES.trainer, replicas=replicas)
        config = replace(changed(SCENES, hidden_size=512), trainer=trainer)
        require_memory_for_training(config, CPU, vocab_size=100_000, tokens=2000)

    require(1)
    message = r"^trainer\.replicas=100: training would take \d+ GB of memory, and 21 GB are free; "
    with pytest.raises(ConfigError, match=message) as error:
        require(100)
    largest = int(str(error.value).split()[-1])
    require(largest)
    with pytest.raises(ConfigError, match=rf"the largest that fits is {largest}$"):
        require(largest + 1)


@pytest.mark.parametrize("kind", sorted(schema.GROUPS["model"].keys() - {"base"}))
def test_no_more_weights_are_reckoned_than_a_model_has(kind: str) -> None:
    sizes = {"hidden_size": 80, "embedding_dim": 48, "num_layers": 1}
    sizes |= {"attention_dim": 32} if schema.GROUPS["model"][kind].attends else {}
    own = schema.GROUPS["model"][kind](**sizes)
    vocab_size, feature_dim = 300, 40
    model = build_captioner(own, vocab_size=vocab_size, feature_dim=feature_dim)
    config = replace(SCENES, model=own)
    named = {f"model.{key}": value for key, value in sizes.items()}
    counted = count_weights(config, named, vocab_size=vocab_size, feature_dim=feature_dim)
    weights = sum(one.numel() for one in model.parameters())
    assert weights / 3 < counted <= weights


@pytest.mark.parametrize("rnn", schema.RNN_KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_language_models_weights_are_all_reckoned(rnn: str, tied: bool) -> None:
    sizes = {"hidden_size": 12, "embedding_dim": 12, "num_layers": 3}
    own = schema.ModelConfig(**sizes, tie_embeddings=tied)
    kind = schema.RnnConfig(kind=rnn)
    model = build_language_model(own, vocab_size=30, rnn=kind)
    config = replace(TEXT, model=own, rnn=kind)
    named = {f"model.{key}": value for key, value in sizes.items()}
    counted = count_weights(config, named, vocab_size=30, feature_dim=1)
    assert counted == sum(one.numel() for one in model.parameters())


def test_other_sizes_are_reckoned_with() -> None:
    generation = schema.GenerationConfig(beam_size=10**7)
    with pytest.raises(ConfigError, match=r"generation\.beam_size=10000000: generation"):
        require_memory_for_captions(generation, CPU, vocab_size=5000, images=100)
    require_memory_for_captions(generation, CPU, vocab_size=10, images=1)
    with pytest.raises(ConfigError, match=r"^n=1000000000: writing would take .* the largest"):
        require_memory_for_text(10**9, 600, CPU, vocab_size=65, state=1024)
    with pytest.raises(ConfigError, match=r"^length=1000000000: writing"):
        require_memory_for_text(2, 10**9, CPU, vocab_size=65, state=1024)
    with pytest.raises(ConfigError, match=r"encoder\.batch_size=1000000: encoding images"):
        require_memory_for_images(224, {"encoder.batch_size": 10**6}, CPU, images=10**6)
    require_memory_for_images(224, {"encoder.batch_size": 10**6}, CPU, images=100)


def test_what_does_not_fit_at_all_has_no_largest_value() -> None:
    with pytest.raises(
        ConfigError, match=r"a=3: it would take 30 GB of memory, and 21 GB are free$"
    ):
        require_memory("it", {"a": 3}, lambda _: 30e9, CPU)


def test_the_machine_and_the_process_say_what_is_free() -> None:
    found = free_memory(CPU)
    assert found is not None and 10**6 < found < 2**50
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 10**8, limits[1]))
    try:
        limited = free_memory(CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert limited is not None and limited <= 10**8
