"""Every YAML is found, composed and built; wrong keys and values are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import composed
import pytest
from torch import nn

from captioner import config as schema
from captioner.build.components import build_generation, build_optimizer, trainer_settings
from captioner.build.models import build_captioner, build_language_model
from captioner.commands.cli import compose_config
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError, DataError

CONFIGS = Path(__file__).parents[2] / "configs"
GROUP_FILES = sorted(
    path.relative_to(CONFIGS)
    for path in CONFIGS.rglob("*.yaml")
    if path.parent != CONFIGS and path.parts[-3] != "hydra" and path.parent.name != "recipe"
)
# What a choice needs from the command line before it can be composed.
NEEDED = {
    "data/flickr8k": ["data.root=x"],
    "data/karpathy": ["data.json=x", "data.images=y"],
    "data/coco": [
        "data.train_annotations=a",
        "data.train_images=b",
        "data.dev_annotations=c",
        "data.dev_images=d",
    ],
    "data/folder": ["data.captions=a", "data.images=b"],
    "encoder/features": ["encoder.path=x"],
    "data/text": ["data.path=x", "encoder=none", "trainer.best_metric=loss"],
    "data/python_source": ["encoder=none", "trainer.best_metric=loss"],
    "data/tiny_shakespeare": ["encoder=none", "trainer.best_metric=loss"],
    "encoder/none": ["data=python_source", "trainer.best_metric=loss"],
    "experiment/words": ["data.path=x"],
    "experiment/nic_flickr8k": ["data.root=x"],
    "experiment/neon_flickr8k": ["data.root=x"],
    "experiment/neuraltalk_flickr8k": ["data.root=x"],
    "experiment/attention_flickr8k": ["data.root=x"],
    "experiment/attention_flickr8k_reward": ["data.root=x", "init_from=y"],
    "experiment/attention_flickr8k_finetune": ["data.root=x", "init_from=y"],
    "experiment/adaptive_attention_flickr8k": ["data.root=x"],
    "model/layered_attention": ["encoder.output=grid"],
    "model/adaptive_attention": ["encoder.output=grid"],
    "experiment/show_attend_tell_flickr8k": ["data.root=x"],
    "experiment/up_down_flickr8k": ["data.root=x"],
    "model/show_attend_tell": ["encoder.output=grid"],
    "model/up_down": ["encoder.output=grid"],
}

LAYERED = "model=layered_attention"
SAMPLING = ["trainer.scheduled_sampling=0.25"]
REWARD = ["trainer.objective=reward", "trainer.batch_by=picture", "init_from=x"]


def compose(*overrides: str, name: str = "train") -> Any:
    return compose_config(name, overrides, configs=CONFIGS)


def test_the_yaml_files_are_found() -> None:
    groups = {str(path.parent) for path in GROUP_FILES}
    assert groups >= {*schema.GROUPS, "experiment"}


@pytest.mark.parametrize("path", GROUP_FILES, ids=str)
def test_every_yaml_composes_and_builds(path: Path) -> None:
    """Every choice of every group gives a model, an optimiser, trainer settings and a method."""
    choice = str(path.with_suffix(""))
    group, name = choice.split("/")
    overrides = [f"{group}={name}", *NEEDED.get(choice, [])]
    config = compose(*overrides)
    assert isinstance(config, schema.TrainConfig)
    assert config.name == (name if group == "experiment" else "captioner")
    vocabulary = Vocabulary(["dog"], counts=[0, 0, 1, 1, 1])
    model: nn.Module
    if isinstance(config.data, schema.TextData):
        model = build_language_model(config.model, vocab_size=5, rnn=config.rnn)
    else:
        model = build_captioner(config.model, vocab_size=5, feature_dim=3, rnn=config.rnn)
    assert build_optimizer(config, model).param_groups
    assert trainer_settings(config).epochs == config.trainer.epochs
    assert callable(build_generation(config.generation, vocabulary))


@pytest.mark.parametrize("name", sorted(schema.COMMANDS))
def test_every_command_composes(name: str) -> None:
    needed = {
        "evaluate": ["checkpoint=x"],
        "average": ["checkpoint=[a.pt,b.pt]", "out=c.pt"],
        "compare": ["runs=[a,b]"],
        "caption": ["checkpoint=x", "images=y"],
        "sample": ["checkpoint=x"],
        "export": ["checkpoint=x", "out=y"],
        "demo": ["checkpoint=x"],
        "recipe": ["out=x"],
    }
    config = compose(*needed.get(name, []), name=name)
    assert isinstance(config, schema.COMMANDS[name])


def test_experiments_carry_the_published_settings() -> None:
    """The figures of neon's and neuraltalk's code, as their authors released it."""
    neon = compose("experiment=neon_flickr8k", "data.root=x")
    assert (neon.optimizer.name, neon.optimizer.alpha, neon.optimizer.lr) == (
        "rmsprop",
        0.997,
        5e-4,
    )
    assert (neon.optimizer.clip_value, neon.trainer.batch_size, neon.trainer.epochs) == (1, 128, 15)
    assert (neon.model.input_dropout, neon.model.output_dropout) == (0.5, 0)
    assert (neon.vocabulary.rare, neon.generation.method) == ("drop", "greedy")
    talk = compose("experiment=neuraltalk_flickr8k", "data.root=x")
    assert (talk.model.hidden_size, talk.model.embedding_dim) == (256, 256)
    assert (talk.optimizer.alpha, talk.optimizer.lr, talk.optimizer.clip_value) == (0.999, 1e-3, 5)
    assert (talk.trainer.batch_size, talk.optimizer.weight_decay) == (100, 1e-8)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer.lrr=1"], ["lrr", "'optimizer.lr'"]),
        (["trainer.epoch=1"], ["epoch", "'trainer.epochs'"]),
        (["optimzer.lr=1"], ["optimzer", "'optimizer.lr'"]),
        (["vocabulary.mincount=1"], ["mincount", "'vocabulary.min_count'"]),
        (["encoder=plan"], ["encoder", "'plain'"]),
        (["experiment=nic_flickr"], ["experiment", "'nic_flickr8k'"]),
        (["optimizer.lr=fast"], ["optimizer.lr", "fast", "Float"]),
        (["trainer.epochs=1.5"], ["trainer.epochs", "1.5", "Integer"]),
        (["optimizer.lr=-1"], ["optimizer.lr", "greater than 0", "-1"]),
        (["optimizer.name=adm"], ["optimizer.name", "'adm'", "'adam'"]),
        (["model.input_dropout=1"], ["model.input_dropout", "0.999"]),
        (["model.recurrent_dropout=1.5"], ["model.recurrent_dropout", "0.999", "got 1.5"]),
        (
            ["model=up_down", "encoder.output=grid", "model.recurrent_dropout=0.3"],
            ["model.recurrent_dropout must be 0 for model=up_down, got 0.3"],
        ),
        (
            ["model.activation_regularisation=2"],
            ["model.activation_regularisation is a setting of texts", "data.kind=scenes", "2.0"],
        ),
        (["trainer.random_windows=true"], ["trainer.random_windows is a setting of texts", "True"]),
        (["trainer.random_windows=true", "trainer.window=9"], ["trainer.window of 10", "got 9"]),
        (["model.temporal_activation_regularisation=-1"], ["temporal_activation_reg", "-1"]),
        (["model.backend=cudnn"], ["model.backend", "'cudnn'", "reference"]),
        (["trainer.best_metric=BLEU4"], ["trainer.best_metric", "'BLEU-4'"]),
        (["generation.top_p=1.5"], ["generation.top_p", "1.5"]),
        (
            ["generation.min_length=9", "generation.max_length=3"],
            ["generation.min_length 9", "max_length 3"],
        ),
        (["generation.beam_size=5", "generation.groups=2"], ["generation.groups", "2 and 5"]),
        (["data=flickr8k"], ["data.root", "must be given"]),
        (["model.tie_embeddings=true", "model.hidden_size=8"], ["tie_embeddings", "and 8"]),
        (["model.feature_norm=standardise"], ["feature_norm", "train_from=stage1"]),
        (["encoder.resize=crop"], ["encoder.resize", "'crop'"]),
        (["encoder.views=[original,miror]"], ["encoder.views", "'miror'", "'mirror'"]),
        (["encoder.views=[original,original]"], ["encoder.views", "twice", "original, original"]),
        (["encoder.views=[mirror,original]"], ["encoder.views", "begin with original"]),
        (["encoder.views=[]"], ["encoder.views", "begin with original", "[]"]),
        (
            ["encoder=features", "encoder.path=x", "encoder.views=[original,mirror]"],
            ["encoder.views=mirror", "encoder.kind is features"],
        ),
        (["encoder.cache_dtype=int8"], ["encoder.cache_dtype", "'int8'", "float16"]),
        (["encoder.crop=1"], ["encoder.crop=1", "encoder.frozen_stages=cached"]),
        (
            ["encoder.frozen_stages=cached", "encoder.crop=1", "trainer.replicas=2"],
            ["encoder.crop=1", "trainer.replicas must be 1"],
        ),
        (
            ["encoder.train_from=null", "encoder.unfreeze_epochs=1"],
            ["encoder.train_from must name"],
        ),
        (
            ["encoder.unfreeze_epochs=1", "trainer.replicas=2"],
            ["encoder.unfreeze_epochs=1", "trainer.replicas must be 1"],
        ),
        (["rnn.kind=lstmm"], ["rnn.kind", "'lstmm'", "'lstm'"]),
        (["experiment=attention_flickr8k_reward", "data.root=x"], ["give init_from=CHECKPOINT"]),
        ([*REWARD, "reward.samples=1"], ["reward.baseline=others", "2 or more, got 1", "greedy"]),
        (
            [*REWARD, "reward.cider=0"],
            ["one of reward.cider, reward.bleu", "0 for all"],
        ),
        (["trainer.objective=reward"], ["trainer.objective=reward needs trainer.batch_by=picture"]),
        ([*REWARD, "trainer.label_smoothing=0.1"], ["trainer.label_smoothing=0, got 0.1"]),
        ([*REWARD, "trainer.replicas=2"], ["trainer.replicas=1, got 2"]),
        ([*REWARD, "trainer.graph=on"], ["trainer.graph=on", "trainer.objective=reward"]),
        (
            [*REWARD, "data=python_source", "encoder=none", "trainer.best_metric=loss"],
            ["trainer.objective=reward", "text has no references"],
        ),
        ([*SAMPLING, "trainer.scheduled_sampling=2"], ["trainer.scheduled_sampling", "2"]),
        ([*SAMPLING, *REWARD], ["trainer.scheduled_sampling=0.25 cannot", "trainer.objective=rew"]),
        ([*SAMPLING, "trainer.replicas=2"], ["trainer.replicas must be 1, got 2"]),
        ([*SAMPLING, "trainer.graph=on"], ["trainer.graph=on cannot be with trainer.scheduled"]),
        (
            [*SAMPLING, "data=python_source", "encoder=none", "trainer.best_metric=loss"],
            ["trainer.scheduled_sampling=0.25", "for text it must be 0"],
        ),
        (["encoder=none"], ["encoder=none", "data.kind=scenes"]),
        (["data=text", "encoder=none"], ["data.path", "a text file"]),
        (["data=python_source", "encoder=none"], ["trainer.best_metric", "loss", "'BLEU-4'"]),
        (["data=python_source", "data.unit=letter"], ["data.unit", "'letter'", "character"]),
        (["decoder.hidden_size=8"], ["decoder.hidden_size is now called model.hidden_size"]),
        (["decode=greedy"], ["decode is now called generation"]),
        ([LAYERED, "encoder.output=pooled"], ["model=layered_attention", "encoder.output=grid"]),
        ([LAYERED, "model.heads=7"], ["model.heads", "model.attention_dim", "7 and 512"]),
        ([LAYERED, "model.join=sum"], ["model.join", "'sum'", "concat, gate, lstm"]),
        ([LAYERED, "model.head=8"], ["head", "'model.heads'"]),
        ([LAYERED, "model.attention_dropout=1"], ["model.attention_dropout", "0.999"]),
        (["model.heads=8"], ["model.heads is a key of model=layered_attention alone"]),
        (["data.layout=auto"], ["data.layout is a key of data=flickr8k alone"]),
        (
            ["model=up_down", "encoder.output=grid", "trainer.graph=on"],
            ["trainer.graph=on", "model=up_down"],
        ),
        (
            ["model=show_attend_tell", "encoder.output=grid", "trainer.replicas=2"],
            ["trainer.replicas must be 1 for model=show_attend_tell, got 2"],
        ),
        (
            ["model=adaptive_attention", "encoder.output=grid", "rnn.kind=gru"],
            ["model=adaptive_attention needs rnn.kind=lstm, got gru"],
        ),
        (
            ["experiment=code_char", "vocabulary.size=500"],
            ["vocabulary.size=500 is of texts with data.unit=bpe alone"],
        ),
        (
            ["rnn.kind=layer_norm_lstm", "rnn.rounds=5"],
            ["rnn.rounds=5 is of rnn.kind=mogrifier_lstm, got rnn.kind=layer_norm_lstm"],
        ),
        (
            ["model=up_down", "encoder.output=grid", "model.num_layers=2"],
            ["model.num_layers must be 1 for model=up_down, got 2"],
        ),
        (["model=show_attend_tell", "model.doubly_stochastic=-1"], ["model.doubly_stochastic"]),
        (["model.kind=layered_attention"], ["model.kind is show_and_tell", "model=..."]),
        (["model=layered_atention"], ["model", "'layered_attention'"]),
        (
            ["data=python_source", "encoder=none", "trainer.best_metric=loss", LAYERED],
            ["model=layered_attention attends to images", "model=show_and_tell"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_configuration_is_refused_by_name(overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        composed.compose_config("train", overrides, configs=CONFIGS)
    for part in expected:
        assert part in str(error.value)


def test_every_experiment_begins_with_the_command_that_runs_it() -> None:
    for path in (CONFIGS / "experiment").glob("*.yaml"):
        head = path.read_text().splitlines()[:2]
        assert head[1].startswith(f"# python scripts/train.py experiment={path.stem}"), path


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "checkpoint=FILE"),
        (["results=x"], "references=FILE"),
        (["checkpoint=x", "results=y"], "either"),
    ],
)
def test_evaluate_needs_one_thing_to_score(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        compose(*overrides, name="evaluate")


def test_a_checkpoints_data_configuration_is_restored() -> None:
    stored = {"kind": "flickr8k", "root": "/somewhere", "layout": "karpathy"}
    data = schema.data_config(stored, "best.pt")
    assert data == schema.Flickr8kData(root="/somewhere", layout="karpathy")
    for wrong in ({"kind": "flickr9k"}, {"kind": ["flickr8k"]}, {}, None):
        with pytest.raises(DataError, match=r"best\.pt: kind must be one of scenes, flickr8k"):
            schema.data_config(wrong, "best.pt")
    with pytest.raises(DataError, match=r"best\.pt: root must be text, found 5"):
        schema.data_config({**stored, "root": 5}, "best.pt")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("defaults:\n  - override /decode: greedy\n", "decode is now called generation"),
        ("defaults:\n  - override /decoder: show_and_tell\n", "decoder is now called model"),
        ("decoder:\n  hidden_size: 8\n", "decoder is now called model"),
    ],
)
def test_an_own_experiment_with_an_old_name_is_told_the_new(
    tmp_path: Path, content: str, sentence: str
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    own = tmp_path / "configs" / "experiment" / "own.yaml"
    own.write_text(f"# @package _global_\n{content}")
    with pytest.raises(ConfigError) as error:
        compose_config("train", ["experiment=own"], configs=tmp_path / "configs")
    assert str(error.value) == sentence
