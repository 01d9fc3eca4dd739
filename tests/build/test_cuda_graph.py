"""trainer.graph from the configuration: what it comes to, what is refused, a run of each kind."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from composed import compose_config

from captioner import config as schema
from captioner.build.cuda_graph import wants_graph, why_not
from captioner.build.trainer import build_trainer
from captioner.errors import ConfigError
from captioner.features.source import CachedFeatures
from captioner.training.distributed import World

CONFIGS = Path(__file__).parents[2] / "configs"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FEATURES = CachedFeatures(None, torch.arange(3))  # type: ignore[arg-type]


def configured(
    kind: str = "lstm", train_from: str | None = None, **trainer: Any
) -> schema.TrainConfig:
    """As far as it is looked at."""
    parts = SimpleNamespace(
        encoder=schema.EncoderConfig("plain", "plain", "random", train_from=train_from),
        trainer=schema.TrainerConfig(**trainer),
        rnn=schema.RnnConfig(kind=kind),
        model=schema.ModelConfig(),
    )
    return cast(schema.TrainConfig, parts)


def test_what_a_graph_cannot_hold_is_named() -> None:
    plain, gru = configured(), configured("gru")
    assert why_not(plain, FEATURES, CPU, World()) is None
    cases = {
        "the encoder is trained": (configured(train_from="stage1"), FEATURES, World()),
        "rnn.kind=gru takes": (gru, FEATURES, World()),
        "trainer.replicas=4 have a step as one graph on a GPU alone": (
            configured(replicas=4),
            FEATURES,
            World(),
        ),
        "2 processes": (plain, FEATURES, World(0, 2)),
    }
    for message, (config, source, world) in cases.items():
        found = why_not(config, source, CPU, world)
        assert found is not None and message in found
        with pytest.raises(ConfigError, match=f"trainer.graph=on cannot be: .*{message}"):
            wants_graph(configured(graph="on"), CPU, found)


@pytest.mark.parametrize(
    ("graph", "device", "obstacle", "wanted", "said"),
    [
        ("on", CPU, None, True, "as one CUDA graph, run as it is, for there is no GPU"),
        ("on", CUDA, None, True, "as one CUDA graph, captured"),
        ("auto", CPU, None, False, "part by part (there is no GPU)"),
        ("auto", CUDA, None, False, "part by part (the graph has not been measured"),
        ("auto", CUDA, "it rains", False, "part by part (it rains)"),
        ("off", CUDA, None, False, ""),
    ],
)
def test_the_choice_is_said_with_its_reason(
    graph: str,
    device: torch.device,
    obstacle: str | None,
    wanted: bool,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="captioner"):
        assert wants_graph(configured(graph=graph), device, obstacle) == wanted
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.graph must be one of auto, on, off"):
        configured(graph="yes")


SMALL = [
    "data.train=40",
    "data.dev=6",
    "data.test=6",
    "trainer.epochs=2",
    "model.input_dropout=0",
    "trainer.progress=false",
    "trainer.shown_pictures=1",
    "trainer.batch_size=16",
    "model.output_dropout=0",
    "model.hidden_size=16",
    "model.embedding_dim=16",
    "data.size=32",
    "encoder=plain",
    "encoder.name=plain_small",
    "encoder.size=32",
    "encoder.train_from=null",
    "generation.beam_size=1",
    "device=cpu",
]


def train(folder: Path, *overrides: str) -> Any:
    """The history of a run in a folder."""
    places = [f"data.root={folder}/scenes", f"encoder.cache_dir={folder}/features"]
    return build_trainer(compose_config("train", [*places, *overrides], configs=CONFIGS)).run()


def test_a_run_in_the_form_of_a_graph_learns_what_the_plain_one_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    histories = []
    with caplog.at_level(logging.INFO, logger="captioner"):
        for graph in ("off", "on"):
            changes = [f"trainer.graph={graph}", f"run_dir={tmp_path}/{graph}"]
            histories.append(train(tmp_path, *SMALL, *changes))
            assert ("as one CUDA graph, run as it is" in caplog.text) == (graph == "on")
    for plain, whole in zip(*histories, strict=True):
        assert whole["step"] == plain["step"]
        assert whole["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)


def test_a_text_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be " * 200)
    text = [
        f"data.path={tmp_path}/text.txt",
        f"data.cache_dir={tmp_path}",
        f"run_dir={tmp_path}/run",
    ]
    config = compose_config(
        "train", ["experiment=words", *text, "trainer.graph=on"], configs=CONFIGS
    )
    refusal = "trainer.graph=on cannot be: a text's windows carry a state"
    with pytest.raises(ConfigError, match=refusal):
        build_trainer(config)
