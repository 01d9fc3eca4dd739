"""Language models from the command's configuration: exact resume, scores, samples, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config

import captioner.validation.dynamic as dynamic_evaluation
from captioner.build.checkpoint import load_captioner, load_language_model
from captioner.build.trainer import build_trainer
from captioner.commands.cli import quote
from captioner.commands.evaluate_text import evaluate_text
from captioner.commands.sample import chat, sample_text
from captioner.commands.sample import sample as sample_lines
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.training.checkpoint import load_checkpoint
from captioner.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "what", "it", "had", "seen"]


def write_text(path: Path, lines: int = 120) -> Path:
    drawn = torch.randint(len(WORDS), (lines, 6), generator=torch.Generator().manual_seed(1))
    path.write_text("".join(" ".join(WORDS[k] for k in row) + ".\n" for row in drawn.tolist()))
    return path


def trainer(text: Path, run: Path, *overrides: str) -> Trainer:
    settings = [
        "data=text",
        "encoder=none",
        f"data.path={text}",
        f"data.cache_dir={run.parent}/text",
        f"run_dir={run}",
        "vocabulary.min_count=1",
        "model.embedding_dim=8",
        "model.hidden_size=8",
        "model.num_layers=2",
        "model.layer_dropout=0.2",
        "model.output_dropout=0.2",
        "trainer.batch_size=4",
        "trainer.window=16",
        "trainer.epochs=2",
        "trainer.epoch_windows=9",
        "trainer.best_metric=loss",
        "trainer.progress=false",
        "resume=true",
        "optimizer.lr=0.02",
    ]
    return build_trainer(compose_config("train", [*settings, *overrides], configs=CONFIGS))


class Stopped(Exception):
    pass


def stop_after(one: Trainer, steps: int) -> None:
    """Train, saving at every step, and fall over before step `steps` + 1."""
    inner, given = one.loader, 0

    class Loader:
        def __iter__(self) -> Any:
            nonlocal given
            for batch in inner:
                if given == steps:
                    raise Stopped
                given += 1
                yield batch

    one.loader = Loader()
    with pytest.raises(Stopped):
        one.run()


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("lstm", 4), ("lstm", 12), ("gru", 4), ("rnn_tanh", 12), ("mogrifier_lstm", 4)],
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, kind: str, steps: int) -> None:
    text = write_text(tmp_path / "a.txt")
    settings = (
        f"rnn.kind={kind}",
        "rnn.variational_dropout=true",
        "model.embedding_dropout=0.1",
        "model.recurrent_dropout=0.3",
        "trainer.random_windows=true",
        "trainer.scale_lr_by_window=true",
        "model.activation_regularisation=2",
        "model.temporal_activation_regularisation=1",
        "trainer.checkpoint_steps=1",
    )
    whole = trainer(text, tmp_path / "whole", *settings)
    history = whole.run()
    stop_after(trainer(text, tmp_path / "cut", *settings), steps)
    resumed = trainer(text, tmp_path / "cut", *settings)
    assert resumed.progress.step == steps
    carried = [one.clone() for one in resumed.model.carried_state()]  # type: ignore[operator]
    assert carried and all(float(one.abs().max()) > 0 for one in carried)
    again = resumed.run()
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    figures = [{k: v for k, v in one.items() if k != "seconds"} for one in (*history, *again)]
    assert figures[:2] == figures[2:]

    # Without the carried state it would be another run.
    stop_after(trainer(text, tmp_path / "lost", *settings), steps)
    lost = trainer(text, tmp_path / "lost", *settings)
    lost.model.load_carried_state([torch.zeros_like(one) for one in carried])  # type: ignore[operator]
    assert lost.run()[-1]["loss"] != history[-1]["loss"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text = write_text(folder / "a.txt")
    trainer(text, folder / "run", "trainer.epochs=6", "trainer.epoch_windows=30").run()
    return folder / "run" / "best.pt"


def evaluate(checkpoint: Path, *overrides: str) -> dict[str, Any]:
    settings = [f"checkpoint={checkpoint}", *overrides]
    return evaluate_text(compose_config("evaluate", settings, configs=CONFIGS))[1]


def sample(
    checkpoint: Path, listener: Callable[[int, str], None] | None = None, **values: Any
) -> Any:
    overrides = [quote(f"{key}={value}", ("prompt", "stop")) for key, value in values.items()]
    settings = [f"checkpoint={checkpoint}", *overrides]
    return sample_text(compose_config("sample", settings, configs=CONFIGS), listener)


def test_training_learns_and_the_score_is_the_one_of_training(checkpoint: Path) -> None:
    history = json.loads((checkpoint.parent / "history.json").read_text())
    best = min(one["loss"] for one in history)
    assert best < 1.6 < history[0]["loss"]
    scores = evaluate(checkpoint)
    assert scores["loss"] == pytest.approx(best, abs=1e-5)
    stored = json.loads((checkpoint.parent / "dev" / "scores.json").read_text())
    assert stored == scores
    assert "characters and 0 ends of documents, 0 unknown" in scores["protocol"]["averaged over"]


def test_validation_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt")
    found = [
        trainer(text, tmp_path / f"b{size}", f"trainer.batch_size={size}", "trainer.window=8")
        for size in (1, 5)
    ]
    assert found[0].validations.validate(0) == found[1].validations.validate(0)


def test_any_text_can_be_scored_and_shown(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("the <cat> sat.\n" * 5 + "\N{EURO SIGN}")
    page = tmp_path / "page.html"
    scores = evaluate(
        checkpoint,
        "data=text",
        f"data.path={tmp_path}/b.txt",
        f"data.cache_dir={tmp_path}/text",
        "split=all",
        f"out={tmp_path}/scores",
        f"page={page}",
        "page_tokens=20",
    )
    assert "76 characters and 0 ends of documents, 11 unknown" in str(scores["protocol"])
    html = page.read_text(encoding="utf-8")
    assert html.count('<span style="--s:') == 20 + 5  # the tokens, and the key
    assert "&lt;unk&gt;" in html and "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n" in html
    with pytest.raises(DataError, match="no split 'test'; the splits there are: train, dev"):
        evaluate(checkpoint, "split=test")
    with pytest.raises(ConfigError, match=r"data must be text too, got data\.kind=scenes"):
        evaluate(checkpoint, "data=scenes")


def test_dynamic_evaluation_and_an_ensemble_are_named_as_such(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On documents of a sentence that was never trained on, said again and again."""
    monkeypatch.setattr(dynamic_evaluation, "STATISTICS_SEGMENTS", 40)
    for number in range(3):
        (tmp_path / "new" / f"{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "new" / f"{number}.txt").write_text("dogs saw mats on that cat.\n" * 12)
    text = ["data=text", f"data.path={tmp_path}/new", f"data.cache_dir={tmp_path}/text"]
    text += ["split=all", f"out={tmp_path}/scores"]
    scores = evaluate(checkpoint, *text)
    low, high = scores["intervals"]["loss"]
    assert low <= scores["loss"] <= high and "of 3 documents" in scores["protocol"]["intervals"]
    assert scores["protocol"]["weights"] == "fixed"
    dynamic = ["dynamic=true", "dynamic_lr=0.1", "overwrite=true"]
    learned = evaluate(checkpoint, *text, *dynamic)
    assert learned["loss"] < scores["loss"] - 0.1
    said = "dynamic evaluation (Krause et al. 2018), after every 20 tokens, learning rate 0.1"
    assert said in learned["protocol"]["weights"]
    twice = f"checkpoint=[{checkpoint},{checkpoint}]"
    both = evaluate(checkpoint, *text, twice, "overwrite=true")
    assert both["loss"] == pytest.approx(scores["loss"], abs=1e-5)
    name, _ = evaluate_text(compose_config("evaluate", [twice, "dynamic=true"], configs=CONFIGS))
    assert name == "run dev ensemble_of_2 dynamic"
    assert (checkpoint.parent / "dev_ensemble_of_2_dynamic" / "scores.json").exists()


def test_an_ensemble_of_other_characters_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789\n" * 100)
    small = ["trainer.epochs=1", "trainer.epoch_windows=1"]
    trainer(tmp_path / "a.txt", tmp_path / "digits", *small).run()
    other = tmp_path / "digits" / "best.pt"
    with pytest.raises(ConfigError, match=r"digits/best.pt has another vocabulary \(15 characters"):
        evaluate(checkpoint, f"checkpoint=[{checkpoint},{other}]")


def test_a_chat_goes_on_after_all_that_was_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"checkpoint={checkpoint}", "chat=true", "length=20", f"out={tmp_path}/chat.json"]
    config = compose_config("sample", [*overrides, "prompt='the cat'"], configs=CONFIGS)
    said = [*chat(config, ["a hat", "\N{EURO SIGN}", "the mat"])]
    assert "\N{EURO SIGN}" in said[2] and said[::2] == ["", said[2]]
    turns = json.loads((tmp_path / "chat.json").read_text())["turns"]
    assert [turn["prompt"] for turn in turns] == ["the cat", "a hat", "the mat"]
    assert capsys.readouterr().out == "".join(turn["text"] for turn in turns)
    # As one prompt that holds all of it.
    before = "".join(turn["prompt"] + turn["text"] for turn in turns[:2]) + "the mat"
    assert sample(checkpoint, prompt=before, length=20, seed=3)[1][0].text == turns[2]["text"]


def test_texts_of_several_checkpoints_stand_side_by_side(checkpoint: Path, tmp_path: Path) -> None:
    overrides = [f"checkpoint=[{checkpoint},{checkpoint}]", "length=90", "prompt=the cat"]
    config = compose_config("sample", [*overrides, f"out={tmp_path}/v.json"], configs=CONFIGS)
    lines = [*sample_lines(config)]
    width = (80 - 2 * 3) // 2
    assert lines[0].split() == ["[run]", "[run]"] and lines[1].startswith("the cat")
    for line in lines:
        assert line[:width].rstrip() == line[width + 3 :]
    voices = json.loads((tmp_path / "v.json").read_text())["voices"]
    assert len(voices) == 2 and voices[0] == voices[1]


def test_samples_are_shown_and_kept(checkpoint: Path, tmp_path: Path) -> None:
    shown: list[str] = []
    prompt, found = sample(
        checkpoint,
        lambda number, text: shown.append(text) if number == 1 else None,
        prompt="the cat",
        length=80,
        n=3,
        temperature=0.5,
        seed=7,
        out=tmp_path / "s.json",
    )
    assert prompt == "the cat" and "".join(shown) == found[1].text and len(shown) > 40
    assert sample(checkpoint, prompt="the cat", length=80, n=3, temperature=0.5, seed=7)[1] == found
    stored = json.loads((tmp_path / "s.json").read_text())
    assert [one["text"] for one in stored["samples"]] == [one.text for one in found]
    stopped = sample(checkpoint, prompt="the", length=200, temperature=0.5, stop=".\n")[1][0]
    assert stopped.finished == "stop" and "." not in stopped.text


@pytest.mark.parametrize(
    "text", ["O, it's", "a'", "x\\", "\\'", "${a}", "{[a]}", "a\nb ", "null", "7"]
)
def test_a_prompt_is_taken_as_it_is(text: str) -> None:
    overrides = ["checkpoint=x", quote(f"prompt={text}", ("prompt",))]
    assert compose_config("sample", overrides, configs=CONFIGS).prompt == text


def test_wrong_input_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no character 'Z'; the first at 1"):
        sample(checkpoint, prompt="tZ")
    text = write_text(tmp_path / "a.txt", lines=3)
    with pytest.raises(DataError, match=r"\d+ tokens do not fill one window of 16"):
        trainer(text, tmp_path / "short", "trainer.batch_size=9")
    write_text(text)
    with pytest.raises(DataError, match="no word occurs min_count=999 times"):
        trainer(text, tmp_path / "rare", "data.unit=word", "vocabulary.min_count=999")
    with pytest.raises(ConfigError, match="text needs encoder=none"):
        trainer(text, tmp_path / "x", "encoder=plain")
    with pytest.raises(ConfigError, match="best_metric must be one of loss"):
        trainer(text, tmp_path / "x", "trainer.best_metric=BLEU-4")
    with pytest.raises(ConfigError, match=r"rnn\.kind must be one of lstm"):
        trainer(text, tmp_path / "x", "rnn.kind=elman")
    with pytest.raises(CheckpointError, match="it captions no images"):
        load_captioner(checkpoint, device=torch.device("cpu"))
    texts = dict(load_checkpoint(checkpoint).texts)
    assert json.loads(texts["config"])["data"]["kind"] == "text"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_language_model(tmp_path / "none.pt", device=torch.device("cpu"))


@pytest.mark.parametrize("unit", ["byte", "word", "bpe"])
def test_other_units_train_score_and_write(tmp_path: Path, unit: str) -> None:
    text = write_text(tmp_path / "a.txt")
    run = tmp_path / "run"
    tied = "model.tie_embeddings=true"
    one = trainer(text, run, f"data.unit={unit}", tied, "trainer.batch_size=2")
    figures = one.run()[-1]
    expected = {"loss", "perplexity", "bits_per_byte"}
    assert expected | (set() if unit == "word" else {"bits_per_character"}) <= set(figures)
    if unit != "word":  # the text is ASCII
        assert figures["bits_per_byte"] == pytest.approx(figures["bits_per_character"])
    prompt, found = sample(run / "best.pt", prompt="the cat", length=12)
    assert prompt == ("the cat " if unit == "word" else "the cat") and found[0].text


def test_the_scripts_train_score_and_write(tmp_path: Path, run_script: Any) -> None:
    small = [
        "experiment=code_char",
        "model.hidden_size=16",
        "model.embedding_dim=8",
        "trainer.batch_size=4",
        "trainer.window=32",
        "trainer.epochs=1",
        "trainer.epoch_windows=5",
        "run_dir=run",
        "trainer.progress=false",
        "data.dev_fraction=0.001",
    ]
    done = run_script(tmp_path, "train", *small)
    assert "best loss" in done.stdout, done.stderr
    done = run_script(tmp_path, "evaluate", "checkpoint=run/best.pt", "page=page.html")
    assert "bits_per_character" in done.stdout and (tmp_path / "page.html").exists(), done.stderr
    sampling = ["checkpoint=run/best.pt", "prompt=def f(", "length=20", "n=2"]
    done = run_script(tmp_path, "sample", *sampling)
    assert done.stdout.startswith("def f(") and "--- 2 of 2 ---\ndef f(" in done.stdout
    assert run_script(tmp_path, "sample", *sampling).stdout == done.stdout
    done = run_script(tmp_path, "sample", "checkpoint=run/best.pt", "prompt=\N{SNOWMAN}")
    assert done.returncode == 1 and done.stdout == ""
    assert "the model has no character '\N{SNOWMAN}'" in done.stderr
