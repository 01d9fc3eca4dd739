"""trainer.replicas from the configuration: one folder each, as a run alone would leave it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from composed import compose_config

from captioner.build import memory
from captioner.build.replicas import refuse_shared_draws, replica_configs
from captioner.build.trainer import build_trainer
from captioner.commands.failures import explain
from captioner.errors import ConfigError
from captioner.runs.folder import flat
from captioner.training.checkpoint import load_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = "the cat sat on the mat.\nthe dog ran over the hill.\n" * 60


def config(tmp_path: Path, *overrides: str):  # type: ignore[no-untyped-def]
    (tmp_path / "text.txt").write_text(TEXT)
    return compose_config(
        "train",
        [
            "experiment=code_char",
            "data=text",
            f"data.path={tmp_path / 'text.txt'}",
            f"data.cache_dir={tmp_path / 'cache'}",
            "model.hidden_size=8",
            "model.embedding_dim=8",
            "model.num_layers=1",
            "trainer.batch_size=4",
            "trainer.window=16",
            "trainer.epochs=2",
            "trainer.epoch_windows=5",
            "trainer.progress=false",
            "trainer.shown_pictures=1",
            "model.input_dropout=0.2",
            "model.embedding_dropout=0.1",
            "model.recurrent_dropout=0.2",
            "seed=3",
            f"run_dir={tmp_path / 'group'}",
            *overrides,
        ],
        configs=CONFIGS,
    )


def test_what_differs_is_in_each_replicas_own_configuration(tmp_path: Path) -> None:
    group = config(
        tmp_path,
        "trainer.replicas=2",
        "replicas.lr=[0.1,0.2]",
        "replicas.clip_norm=[1,5]",
        "replicas.output_dropout=[0,0.5]",
    )
    (first, _), (second, differs) = replica_configs(group)
    assert (first.seed, second.seed) == (3, 4)
    assert first.trainer.order_seed == second.trainer.order_seed == 3
    found = (second.optimizer.lr, second.optimizer.clip_norm, second.model.output_dropout)
    assert found == (0.2, 5.0, 0.5)
    assert second.trainer.replicas == 1
    assert differs == {"seed": 4, "lr": 0.2, "clip_norm": 5.0, "output_dropout": 0.5}
    ordered = config(tmp_path, "trainer.replicas=2", "replicas.order_seed=[7,8]")
    orders = [own.trainer.order_seed for own, _ in replica_configs(ordered)]
    assert orders == [7, 8] and replica_configs(ordered)[1][1] == {"seed": 4, "order_seed": 8}


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replicas\.lr must have a value for each .*=3, got 2"):
        config(tmp_path, "trainer.replicas=3", "replicas.lr=[0.1,0.2]")


def test_a_list_for_a_single_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replicas\.lr=\[0\.1\] is of trainer\.replicas above 1"):
        config(tmp_path, "replicas.lr=[0.1]")


def test_a_dropout_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replicas.region_dropout is nothing that model=.* has"):
        config(tmp_path, "trainer.replicas=2", "replicas.region_dropout=[0.1,0.2]")


def test_more_than_fit_into_memory_are_refused_before_any_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 100_000)
    with pytest.raises(
        ConfigError, match=r"trainer\.replicas=1000: training .*; the largest that fits is \d+$"
    ):
        build_trainer(config(tmp_path, "trainer.replicas=1000"))
    assert not (tmp_path / "group" / "replica_0").exists()


def test_what_cannot_differ_is_said(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="hidden_size") as refused:
        config(tmp_path, "trainer.replicas=2", "replicas.hidden_size=[8,16]")
    sentence = explain(refused.value, "train")
    assert "replicas.hidden_size is nothing in which the models of trainer.replicas can differ" in (
        sentence
    )
    assert "lr, " in sentence and "a sweep's (-m)" in sentence


def test_a_random_frozen_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="share the features of a frozen encoder"):
        compose_config(
            "train",
            [
                "trainer.replicas=2",
                "encoder.weights=random",
                "encoder.train_from=null",
                "run_dir=x",
            ],
            configs=CONFIGS,
        )


def test_an_encoder_that_draws_is_refused() -> None:
    with pytest.raises(ConfigError, match="has Dropout in it"):
        refuse_shared_draws(torch.nn.Sequential(torch.nn.Dropout(0.5)))
    refuse_shared_draws(torch.nn.Sequential(torch.nn.Dropout(0.0)))


@pytest.mark.parametrize("order", [3, 9])
def test_a_replica_is_the_run_that_its_own_configuration_repeats(
    tmp_path: Path, order: int
) -> None:
    own_order = [] if order == 3 else [f"replicas.order_seed=[3,{order}]"]
    group = config(tmp_path, "trainer.replicas=2", "replicas.lr=[0.01,0.02]", *own_order)
    build_trainer(group).run()
    own = tmp_path / "group" / "replica_1"
    alone = config(
        tmp_path,
        "seed=4",
        "optimizer.lr=0.02",
        f"trainer.order_seed={order}",
        f"run_dir={tmp_path / 'alone'}",
    )
    build_trainer(alone).run()
    written = [
        flat(json.loads((folder / "config.json").read_text()))
        for folder in (own, tmp_path / "alone")
    ]
    folders = {"run_dir": "", "sweep_dir": ""}
    assert {**written[0], **folders} == {**written[1], **folders}
    found, wanted = (load_checkpoint(f / "last.pt").model for f in (own, tmp_path / "alone"))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "group" / "best.pt").is_file()
