"""The loop: exact resume however it was stopped, the best kept, and arithmetic done by hand."""

from __future__ import annotations

import copy
import errno
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event, RLock
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from tqdm import tqdm

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset, make_loader
from captioner.data.packed import CaptionBatch
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError, DataError, NumericsError
from captioner.generation import Constraints, beam_search
from captioner.inference.captions import CaptionGenerator
from captioner.models.captioner import Captioner
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.training.checkpoint import load_checkpoint
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.reporting import Reporting
from captioner.training.setup import Score, TrainerSettings, TrainingSetup
from captioner.training.step import WeightUpdate
from captioner.training.trainer import Trainer
from captioner.validation.captions import CaptionValidator
from captioner.validation.scores import CaptionScorer

WORDS = ["a", "dog", "cat", "runs", "sits", "on", "the", "grass", "red", "blue"]
FEATURES = torch.randn(10, 1, 6, generator=torch.Generator().manual_seed(11))
VOCABULARY = Vocabulary(WORDS, counts=[1] * (4 + len(WORDS)))
Act = Callable[["Trainer"], None]


def make_images() -> list[CaptionedImage]:
    """Ten images of two captions each, of different lengths."""
    generator = torch.Generator().manual_seed(3)

    def caption(length: int) -> str:
        picked = torch.randint(len(WORDS), (length,), generator=generator)
        return " ".join(WORDS[k] for k in picked.tolist())

    return [
        CaptionedImage(f"{k}.jpg", Path(f"{k}.jpg"), (caption(1 + k % 4), caption(5)), k)
        for k in range(10)
    ]


def source(rows: Tensor) -> Tensor:
    return FEATURES[rows]


def make_dataset() -> CaptionDataset:
    return CaptionDataset(make_images(), vocabulary=VOCABULARY, source=source, max_length=6)


def scoring(scorer: Callable[[dict[str, Any]], dict[str, float]], late: float = 0.0) -> Score:
    """Scores that come `late` seconds after they were asked for, or at once."""
    thread = ThreadPoolExecutor(1)

    def score(measured: dict[str, Any], *, at_once: bool) -> Future[dict[str, float]]:
        return thread.submit(lambda: (time.sleep(0 if at_once else late), scorer(measured))[1])

    return score


class Watched:
    """A loader that acts just before it gives batch number `at`, counted from 0 over all epochs."""

    def __init__(self, loader: Any, at: int, act: Callable[[], None]) -> None:
        self.loader, self.at, self.act, self.given = loader, at, act, 0

    def __iter__(self) -> Iterator[CaptionBatch]:
        for batch in self.loader:
            if self.given == self.at:
                self.act()
            self.given += 1
            yield batch


def make_trainer(
    folder: Path,
    *,
    optimizer: str = "adam",
    lr: float = 0.01,
    dropout: float = 0.3,
    batch_size: int = 3,
    double: bool = False,
    validate: Callable[[int], dict[str, float]] | None = None,
    score: Score | None = None,
    writer: Any = None,
    show_progress: bool = False,
    at: int = -1,
    act: Act | None = None,
    **settings: Any,
) -> Trainer:
    """A small captioner's trainer, all of it made anew; 20 captions, 7 batches of 3 an epoch."""
    torch.manual_seed(0)
    language_model = LanguageModel(
        vocab_size=len(VOCABULARY),
        embedding_dim=8,
        hidden_size=8,
        num_layers=2,
        dropout=DropoutRates(dropout, dropout, dropout),
    )
    model = Captioner(language_model=language_model, feature_dim=6, feature_norm="none")
    if double:
        model.double().image_projection.register_forward_pre_hook(lambda _, x: (x[0].double(),))
    groups = parameter_groups(model, lr=lr, weight_decay=0.0, lr_by_prefix={})
    order = BatchOrder(20, batch_size=batch_size, seed=5)
    setup = TrainingSetup(
        model=model,
        optimizer=make_optimizer(optimizer, groups),
        loader=make_loader(make_dataset(), order, workers=0),
        order=order,
        validate=validate or (lambda step: {"BLEU-4": float(step)}),
        texts={"vocabulary": VOCABULARY.to_json()},
        score=score,
    )
    trainer = Trainer(
        setup,
        folder=folder,
        settings=TrainerSettings(**{"epochs": 3, "log_steps": 2, **settings}),
        device=torch.device("cpu"),
        reporting=Reporting(writer=writer, show_progress=show_progress),
    )
    if act is not None:
        trainer.loader = Watched(trainer.loader, at, partial(act, trainer))
    return trainer


def interrupt(_: Trainer, number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def kill(_: Trainer) -> None:
    raise RuntimeError("killed")


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in figures.items() if k != "seconds"} for figures in history]


def assert_same_run(resumed: Trainer, whole: Trainer) -> None:
    """Bit for bit: weights, optimiser, history and where the run stands."""
    assert without_seconds(resumed.progress.history) == without_seconds(whole.progress.history)
    assert (resumed.progress.step, resumed.progress.best) == (
        whole.progress.step,
        whole.progress.best,
    )
    for part in ("model", "optimizer"):
        mine, theirs = (getattr(t, part).state_dict() for t in (resumed, whole))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    files = [load_checkpoint(t.folder / "best.pt") for t in (resumed, whole)]
    torch.testing.assert_close(files[0].model, files[1].model, rtol=0, atol=0)
    assert files[0].scores == files[1].scores


def finish_resumed(folder: Path, **settings: Any) -> Trainer:
    """What a second process does: everything made anew, then resumed and run to the end."""
    torch.manual_seed(999)
    trainer = make_trainer(folder, **settings)
    trainer.resume()
    trainer.run()
    return trainer


def test_the_learning_rate_can_be_in_proportion_to_the_tokens_of_a_step(tmp_path: Path) -> None:
    """Of two batches, at a step that the schedule has scaled too."""
    scaled = make_trainer(tmp_path, optimizer="sgd", schedule="linear", rate_tokens=10)
    group = [*scaled.loader][:2]
    tokens = scaled.step(group, 5, torch.zeros((), dtype=torch.float64))  # type: ignore[arg-type]
    assert tokens == sum(len(batch.targets) for batch in group) != 10
    plain = make_trainer(tmp_path, optimizer="sgd", schedule="linear", lr=0.01 * tokens / 10)
    plain.step(group, 5, torch.zeros((), dtype=torch.float64))  # type: ignore[arg-type]
    torch.testing.assert_close(scaled.model.state_dict(), plain.model.state_dict())
    assert scaled.optimizer.param_groups[0]["lr"] > 0


# -- stopping and going on ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "accumulation", "number"),
    [
        (0, 1, signal.SIGINT),
        (4, 1, signal.SIGTERM),
        (4, 2, signal.SIGINT),
        (6, 1, signal.SIGINT),  # in the last step of an epoch
        (7, 1, signal.SIGINT),  # in the first of the next
        (20, 2, signal.SIGINT),  # in the very last, which holds one batch
    ],
)
def test_a_run_that_a_signal_stopped_continues_bit_for_bit(
    at: int, accumulation: int, number: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "accumulation": accumulation,
        "schedule": "cosine",
        "clip_norm": 1.0,
    }
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.run()
    stopped = make_trainer(
        tmp_path / "parts", at=at, act=partial(interrupt, number=number), **settings
    )
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    taken = load_checkpoint(tmp_path / "parts/last.pt").training["progress"]["step"]  # type: ignore[index]
    epoch, batch = divmod(at, 7)
    assert taken == epoch * math.ceil(7 / accumulation) + batch // accumulation + 1
    assert_same_run(finish_resumed(tmp_path / "parts", **settings), whole)


@pytest.mark.parametrize(("at", "accumulation"), [(1, 1), (6, 1), (9, 2), (19, 1)])
def test_a_run_that_was_killed_continues_from_its_last_save(
    at: int, accumulation: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"accumulation": accumulation, "checkpoint_steps": 2}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.run()
    stopped = make_trainer(tmp_path / "parts", at=at, act=kill, **settings)
    with pytest.raises(RuntimeError, match="killed"):
        stopped.run()
    assert_same_run(finish_resumed(tmp_path / "parts", **settings), whole)


def test_a_run_can_be_stopped_again_and_again(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    for _ in range(20):
        trainer = make_trainer(tmp_path / "parts", at=2, act=interrupt)
        trainer.resume()
        try:
            trainer.run()
        except KeyboardInterrupt:
            continue
        break
    assert_same_run(trainer, whole)


def noisy(step: int) -> dict[str, float]:
    """A validation that draws from the random state, as sampling might."""
    return {"BLEU-4": float(torch.rand(()))}


def test_a_stop_while_validating_changes_nothing(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", validate=noisy)
    whole.run()

    def stopping(step: int) -> dict[str, float]:
        if step == 14:
            torch.rand(5)
            os.kill(os.getpid(), signal.SIGINT)
        return noisy(step)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "parts", validate=stopping).run()
    assert_same_run(finish_resumed(tmp_path / "parts", validate=noisy), whole)


def test_an_epoch_whose_validation_fails_is_kept_and_validated_again(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", validate=noisy)
    whole.run()

    def failing(step: int) -> dict[str, float]:
        if step == 14:
            raise ConfigError("validation cannot run")
        return noisy(step)

    with pytest.raises(ConfigError, match="validation cannot run"):
        make_trainer(tmp_path / "parts", validate=failing).run()
    training = load_checkpoint(tmp_path / "parts" / "last.pt").training
    assert training is not None and training["progress"]["step"] == 14
    assert_same_run(finish_resumed(tmp_path / "parts", validate=noisy), whole)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice(trainer: Trainer) -> None:
        interrupt(trainer)
        interrupt(trainer)

    trainer = make_trainer(tmp_path, at=4, act=twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.progress.step == 4
    assert not (tmp_path / "last.pt").exists()


def test_the_signal_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    seen = []
    trainer = make_trainer(
        tmp_path, epochs=1, at=0, act=lambda _: seen.append(signal.getsignal(signal.SIGINT))
    )
    trainer.run()
    assert seen[0] != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path)
    history = whole.run()
    again = make_trainer(tmp_path, at=0, act=kill)
    assert again.resume()
    assert again.run() == history
    assert json.loads((tmp_path / "history.json").read_text()) == history


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    assert not make_trainer(tmp_path).resume()


def test_what_cannot_be_resumed_is_refused_naming_the_file(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=1).run()
    last, whole = tmp_path / "last.pt", (tmp_path / "last.pt").read_bytes()
    last.write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(CheckpointError, match=f"{last} holds weights only"):
        make_trainer(tmp_path).resume()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{last} is truncated"):
        make_trainer(tmp_path).resume()
    last.write_bytes(whole)
    other = make_trainer(tmp_path)
    other.model = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=f"{last} does not fit this model: weight is missing"):
        other.resume()
    other = make_trainer(tmp_path)
    other.optimizer = torch.optim.Adam([{"params": [p]} for p in other.model.parameters()])
    with pytest.raises(CheckpointError, match=f"{last} is of another optimiser"):
        other.resume()


# -- scores that come later ---------------------------------------------------------------------


def measuring(trainer: Trainer) -> Callable[[int], dict[str, Any]]:
    """A validation that measures the weights as they are."""
    return lambda step: {
        "step": step,
        "sums": [float(x.double().sum()) for x in trainer.model.state_dict().values()],
    }


def score_of(measured: dict[str, Any]) -> dict[str, float]:
    """Now better, now worse."""
    return {"BLEU-4": math.sin(1e3 * sum(measured["sums"])), "at": float(measured["step"])}


EVERYTHING: dict[str, Any] = {
    "epochs": 8,
    "patience": 3,
    "checkpoint_steps": 3,
    "ema": 0.9,
    "keep_epochs": 2,
}


def make_scored(folder: Path, late: float = 0.0, **settings: Any) -> Trainer:
    trainer = make_trainer(folder, score=scoring(score_of, late), **{**EVERYTHING, **settings})
    trainer.validations.validate = measuring(trainer)
    return trainer


def content(value: Any) -> Any:
    """What a checkpoint or a history holds, to be compared by ==; seconds are left out."""
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: content(one) for key, one in value.items() if key != "seconds"}
    return [*map(content, value)] if isinstance(value, list | tuple) else value


def assert_same_folder(folder: Path, other: Path) -> None:
    """The same files; checkpoints and history are equal bit for bit."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {path.name for path in other.iterdir()}
    assert {"last.pt", "best.pt", "history.json", "timing.json"} < names
    for name in sorted(names - {"timing.json"}):
        if name.endswith(".pt"):
            found = [vars(load_checkpoint(one / name)) for one in (folder, other)]
        else:
            found = [json.loads((one / name).read_text()) for one in (folder, other)]
        assert content(found[0]) == content(found[1]), name


@pytest.mark.parametrize("late", [0.0, 0.01, None])
def test_scores_that_come_later_change_nothing(tmp_path: Path, late: float | None) -> None:
    """Some seconds later, within the next epoch; None: only when they are waited for."""
    whole = make_scored(tmp_path / "whole")
    whole.validations.score = None
    measure = measuring(whole)
    whole.validations.validate = lambda step: score_of(measure(step))
    whole.run()
    assert 3 < len(whole.progress.history) < 8, "it is to stop early"
    beside, awaited = make_scored(tmp_path / "beside"), Event()
    settle, steps = beside.validations.settle, []

    def score_when_awaited(measured: dict[str, Any]) -> dict[str, float]:
        awaited.wait()
        awaited.clear()
        steps.append(beside.progress.step - measured["step"])
        return score_of(measured)

    def settling(progress: Any) -> None:
        if progress.pending is not None:
            awaited.set()
        settle(progress)

    if late is None:
        beside.validations.score = scoring(score_when_awaited)
        beside.validations.settle = settling  # type: ignore[method-assign]
    else:
        beside.validations.score = scoring(score_of, late)
    beside.run()
    assert_same_folder(tmp_path / "beside", tmp_path / "whole")
    if late is None:  # epochs of seven steps were trained beside, but not where a stop was possible
        assert set(steps) == {0, 7} and steps[-1] == 0


def test_scores_that_fail_are_computed_again_by_a_resumed_run(tmp_path: Path) -> None:
    def failing(measured: dict[str, Any]) -> dict[str, float]:
        if measured["step"] == 14:
            raise DataError("no scores today")
        return score_of(measured)

    make_scored(tmp_path / "whole", patience=None, epochs=3).run()
    trainer = make_scored(tmp_path / "parts", patience=None, epochs=3)
    trainer.validations.score = scoring(failing, late=0.01)
    with pytest.raises(DataError, match="no scores today"):
        trainer.run()
    progress = (load_checkpoint(tmp_path / "parts/last.pt").training or {})["progress"]
    assert progress["pending"]["figures"]["epoch"] == 2 and len(progress["history"]) == 1
    resumed = make_scored(tmp_path / "parts", patience=None, epochs=3)
    resumed.resume()
    resumed.run()
    assert_same_folder(tmp_path / "parts", tmp_path / "whole")


def in_a_child(folder: Path, killed_at: int | None, moments: random.Random) -> int:
    """A process that resumes the run and trains to its end, or kills itself when it renames a file
    for the `killed_at`th time; its number."""
    late = moments.uniform(0, 0.01)
    process = os.fork()
    if process:
        return process
    try:
        torch.set_num_threads(1)
        # The lock that tqdm has would be shared with the children that were killed, holding it.
        tqdm.set_lock(RLock())
        rename, seen = Path.replace, count(1)

        def replace(path: Path, target: Path) -> Path:
            number = next(seen)
            if number == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        Path.replace = replace  # type: ignore[method-assign, assignment]
        trainer = make_scored(folder, late)
        trainer.resume()
        trainer.run()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that uses a GPU cannot be copied")
@pytest.mark.slow
def test_killed_twenty_times_at_any_moment_runs_end_the_same(tmp_path: Path) -> None:
    """SIGKILL after a random time, and before a random file takes its name."""
    moments = random.Random(0)
    began = time.monotonic()
    assert os.waitpid(in_a_child(tmp_path / "whole", None, moments), 0)[1] == 0
    seconds = time.monotonic() - began
    kills, runs, finished = 0, 1, 0
    while kills < 20 or finished < runs:
        at = moments.randrange(1, 30) if kills % 2 else None
        process = in_a_child(tmp_path / f"{runs}", at if kills < 20 else None, moments)
        if kills < 20 and at is None:
            time.sleep(moments.uniform(0, 0.6 * seconds))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            kills += 1
            continue
        assert os.waitstatus_to_exitcode(status) == 0
        assert_same_folder(tmp_path / f"{runs}", tmp_path / "whole")
        finished += 1
        if kills < 20:
            runs += 1
    assert kills == 20 and finished == runs


# -- when something goes wrong ------------------------------------------------------------------


def spoil(trainer: Trainer) -> None:
    """From now on the images' features are not numbers."""
    captioner = cast(Captioner, trainer.model)
    captioner.image_projection.register_forward_pre_hook(lambda _, x: (x[0] * float("nan"),))


@pytest.mark.parametrize(
    ("settings", "seen_at", "kept"),
    [
        ({"checkpoint_steps": 1, "log_steps": 50}, 5, 4),
        ({"checkpoint_steps": 2, "log_steps": 50}, 6, 4),
        ({"log_steps": 50}, 7, None),
        ({"log_steps": 1}, 5, None),
    ],
)
def test_a_loss_that_is_no_number_stops_the_run_and_is_never_saved(
    settings: dict[str, Any], seen_at: int, kept: int | None, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, at=4, act=spoil, **settings)
    with pytest.raises(NumericsError, match=rf"loss became nan .* step {seen_at} .*last.pt holds"):
        trainer.run()
    assert (tmp_path / "last.pt").exists() == (kept is not None)
    if kept is not None:
        checkpoint = load_checkpoint(tmp_path / "last.pt")
        assert checkpoint.training is not None
        assert checkpoint.training["progress"]["step"] == kept
        assert all(torch.isfinite(x).all() for x in checkpoint.model.values())
        assert_same_run(finish_resumed(tmp_path), finish_resumed(tmp_path / "whole"))


def test_a_weight_that_overflows_in_the_last_update_is_never_saved(tmp_path: Path) -> None:
    """The loss of that very step is still finite."""

    def too_fast(trainer: Trainer) -> None:
        for group in trainer.optimizer.param_groups:
            group["base_lr"] = 1e39

    trainer = make_trainer(
        tmp_path, optimizer="sgd", at=6, act=too_fast, checkpoint_steps=2, log_steps=50
    )
    with pytest.raises(NumericsError, match=r"is no longer finite at step 7 .*last.pt holds"):
        trainer.run()
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    assert checkpoint.training is not None and checkpoint.training["progress"]["step"] == 6
    assert all(torch.isfinite(x).all() for x in checkpoint.model.values())


def test_a_full_disk_is_named_and_the_last_save_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(trainer: Trainer) -> None:
        trainer.writer.finish()  # step 4's

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)

    trainer = make_trainer(tmp_path / "parts", at=5, act=fill, checkpoint_steps=2)
    with pytest.raises(DataError, match=r"cannot write .*last.pt: No space left on device"):
        trainer.run()
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "parts/last.pt").training["progress"]["step"] == 4  # type: ignore[index]
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["last.pt"]
    assert_same_run(finish_resumed(tmp_path / "parts"), finish_resumed(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ({"CIDEr": 1.0, "loss": 2.0}, ConfigError, "'BLEU-4' is not among CIDEr, loss"),
        ({"BLEU-4": float("nan")}, NumericsError, "BLEU-4 is NaN after step 7"),
    ],
)
def test_a_score_that_cannot_be_compared_is_refused(
    metrics: dict[str, float], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, validate=lambda step: metrics).run()


def altered(folder: Path, change: Callable[[dict[str, Any]], object]) -> Trainer:
    """A trainer about to resume from a last.pt, of step 10, whose content was changed."""
    if not (folder / "last.pt").exists():
        with pytest.raises(KeyboardInterrupt):
            make_trainer(folder, ema=0.9, at=9, act=interrupt).run()
    content = torch.load(folder / "last.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "last.pt")
    return make_trainer(folder, ema=0.9)


def other_words(content: dict[str, Any]) -> None:
    words = json.loads(content["texts"]["vocabulary"])
    words["words"][1:3] = words["words"][2:0:-1]
    content["texts"]["vocabulary"] = json.dumps(words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_words, "of another vocabulary: words: number 1 is 'cat' there and 'dog' here"),
        (lambda c: c["training"].pop("optimizer"), "training lacks 'optimizer'"),
        (lambda c: c["training"]["optimizer"]["state"].clear(), "no state of the optimiser .exp_"),
        (lambda c: c["training"]["optimizer"]["state"][0].pop("exp_avg"), "expected exp_avg, exp_"),
        (
            lambda c: c["training"]["optimizer"]["state"][0].update(exp_avg=torch.ones(3)),
            "exp_avg that is no finite tensor",
        ),
        (
            lambda c: c["training"]["optimizer"]["param_groups"][0].update(maximize=True),
            "group 0 has maximize=True, expected False",
        ),
        (
            lambda c: c["training"]["optimizer"]["param_groups"][0].update(eps=torch.tensor(1e-8)),
            "group 0 has eps=Tensor, expected 1e-08",
        ),
        (
            lambda c: c["training"]["optimizer"]["state"][0].update(
                exp_avg=c["training"]["optimizer"]["state"][0]["exp_avg"].to_sparse()
            ),
            "of another optimiser or trainer: .*Sparse",
        ),
        (
            lambda c: c["training"]["optimizer"]["param_groups"][0].update(base_lr="fast"),
            "group 0 has base_lr='fast', expected 0.01",
        ),
        (lambda c: c["training"]["progress"].update(step="9"), r"progress\.step must be a whole"),
        (lambda c: c["training"]["progress"].update(step=-9), "at least 0, found -9"),
        (
            lambda c: c["training"]["progress"].update(step=8),
            "stands at step 8, batch 3 of epoch 2",
        ),
        (lambda c: c["training"]["progress"].update(step=16, position=9), "batch 9 of epoch 2: no"),
        (lambda c: c["training"]["progress"].update(step=30, epoch=4), "batch 3 of epoch 5: no"),
        (lambda c: c["training"]["progress"].update(history=[]), "a history of 0 epochs with BLEU"),
        (
            lambda c: c["training"]["progress"].update(best="high"),
            "best must be a finite number or",
        ),
        (lambda c: c["training"].update(random_state=torch.ones(4)), "is of another optimiser or"),
        (lambda c: c["training"]["ema"]["average"].clear(), "the average of .* is missing"),
        (lambda c: c["training"]["ema"].update(average=[]), r"ema\.average must be an object"),
    ],
)
def test_a_last_checkpoint_that_was_changed_is_refused(
    change: Callable[[dict[str, Any]], object],
    message: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shared = tmp_path_factory.getbasetemp() / "stopped_at_step_10"
    altered(shared, lambda content: None)
    shutil.copytree(shared, tmp_path / "run")
    trainer = altered(tmp_path / "run", change)
    with pytest.raises(CheckpointError, match=rf"last\.pt.*{message}"):
        trainer.resume()


# -- the best and the end -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "settings", "epochs", "best"),
    [
        ([1, 3, 2, 2, 9], {"patience": 2}, 4, 2),
        ([1, 3, 3, 3, 9], {"patience": 2}, 4, 2),  # an equal score is no better one
        ([1, 3, 2, 4, 3, 3], {"patience": 2}, 6, 4),
        ([5, 1, 2, 3], {"lower_is_better": True, "patience": 2}, 4, 2),
        ([5, 4, 3, 2], {"lower_is_better": True}, 4, 4),
        ([4, 1, 1, 1], {}, 4, 1),
        ([-2, -1, -3, -3], {"patience": 1}, 3, 2),
    ],
)
def test_the_best_is_kept_and_patience_ends_the_run(
    scores: list[float], settings: dict[str, Any], epochs: int, best: int, tmp_path: Path
) -> None:
    weights: list[dict[str, Tensor]] = []

    def validate(step: int) -> dict[str, float]:
        assert not trainer.model.training
        weights.append(copy.deepcopy(trainer.model.state_dict()))
        return {"score": float(scores[len(weights) - 1]), "other": float(step)}

    trainer = make_trainer(
        tmp_path, epochs=len(scores), best_metric="score", validate=validate, **settings
    )
    history = trainer.run()
    assert [f["score"] for f in history] == scores[:epochs]
    assert [f["epoch"] for f in history] == list(range(1, epochs + 1))
    checkpoint = load_checkpoint(tmp_path / "best.pt")
    torch.testing.assert_close(checkpoint.model, weights[best - 1], rtol=0, atol=0)
    assert checkpoint.scores == {"score": scores[best - 1], "other": best * 7.0}
    assert checkpoint.training is None
    assert checkpoint.texts == {"vocabulary": VOCABULARY.to_json()}
    again = make_trainer(tmp_path, epochs=len(scores), best_metric="score", at=0, act=kill)
    again.resume()
    assert again.run() == history


def test_patience_counts_on_over_a_resume(tmp_path: Path) -> None:
    def validate(step: int) -> dict[str, float]:
        return {"BLEU-4": -float(step)}

    settings: dict[str, Any] = {"epochs": 9, "patience": 3, "validate": validate}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, at=16, act=interrupt, **settings).run()
    assert len(finish_resumed(tmp_path, **settings).progress.history) == 4


# -- validation and training do not disturb each other ------------------------------------------


def test_validating_by_decoding_leaves_training_as_it_was(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "plain")
    plain.run()
    decoding = make_trainer(tmp_path / "decoding")
    constraints = Constraints(bos=1, eos=2, max_length=6)
    decoder = partial(beam_search, constraints=constraints, beam_size=2)
    validator = CaptionValidator(
        generator=CaptionGenerator(decoding.model, VOCABULARY, decoder),  # type: ignore[arg-type]
        images=make_images(),
        dataset=make_dataset(),
        batch_size=4,
    )
    modes = []
    decoding.validations.validate = validator
    decoding.validations.score = scoring(
        CaptionScorer({image.name: image.captions for image in make_images()})
    )
    projection = cast(Captioner, decoding.model).image_projection
    projection.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    history = decoding.run()
    torch.testing.assert_close(
        decoding.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0
    )
    assert modes[:7] == [True] * 7 and sum(modes) == 21 and len(modes) > 21
    assert {"loss", "perplexity", "BLEU-1", "BLEU-4", "different_captions"} <= set(history[0])


# -- arithmetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0.01])
def test_the_steps_are_those_of_a_loop_written_by_hand(value: float | None, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        optimizer="sgd",
        lr=0.5,
        dropout=0.0,
        double=True,
        epochs=2,
        accumulation=2,
        label_smoothing=0.1,
        clip_norm=0.3,
        clip_value=value,
        schedule="linear",
        warmup_steps=3,
    )
    model = copy.deepcopy(trainer.model)
    parameters = list(model.parameters())
    dataset, step, losses = make_dataset(), 0, []
    for epoch in range(2):
        order = BatchOrder(20, batch_size=6, seed=5)
        order.epoch = epoch
        total, tokens = 0.0, 0
        for rows in order:
            batch = dataset[rows]
            log_probs = model(*batch.model_inputs).log_softmax(-1)
            picked = log_probs.gather(1, batch.targets[:, None]).sum()
            loss = -(0.9 * picked + 0.1 * log_probs.mean(1).sum())
            gradients = torch.autograd.grad(loss / len(batch.targets), parameters)
            if value is not None:
                gradients = tuple(g.clamp(-value, value) for g in gradients)
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            rate = 0.5 * min(1, (step + 1) / 3) * (1 - step / 8)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= rate * gradient * min(1.0, 0.3 / (norm + 1e-6))
            step += 1
            total, tokens = total + loss.item(), tokens + len(batch.targets)
        losses.append(total / tokens)
    history = trainer.run()
    assert [f["train_loss"] for f in history] == pytest.approx(losses, rel=1e-10)
    assert trainer.progress.step == step == 8
    torch.testing.assert_close(
        dict(trainer.model.named_parameters()), dict(model.named_parameters()), rtol=1e-9, atol=1e-9
    )


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "dropout": 0.0,
        "double": True,
        "optimizer": "sgd",
        "lr": 1.0,
        "epochs": 2,
    }
    small = make_trainer(tmp_path / "small", batch_size=2, accumulation=4, **settings)
    large = make_trainer(tmp_path / "large", batch_size=8, **settings)
    for mine, theirs in zip(small.run(), large.run(), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-12)
    torch.testing.assert_close(
        small.model.state_dict(), large.model.state_dict(), rtol=1e-10, atol=1e-12
    )


def test_bf16_computes_half_and_keeps_float32_weights(tmp_path: Path) -> None:
    seen = []
    trainer = make_trainer(tmp_path, epochs=1, bf16=True)
    projection = cast(Captioner, trainer.model).image_projection
    projection.register_forward_hook(lambda _, x, embedded: seen.append(embedded.dtype))
    history = trainer.run()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    exact = make_trainer(tmp_path / "exact", epochs=1).run()
    # bfloat16 rounds to 2^-8; the loss is a mean over some hundred tokens.
    assert history[0]["train_loss"] == pytest.approx(exact[0]["train_loss"], rel=0.01)


# -- what is shown ------------------------------------------------------------------------------


class Writer:
    """Stands in for TensorBoard's SummaryWriter."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    def flush(self) -> None:
        pass


def test_tensorboard_gets_every_figure_at_its_step(tmp_path: Path) -> None:
    writer = Writer()
    trainer = make_trainer(
        tmp_path, writer=writer, epochs=2, schedule="linear", validate=lambda s: {"BLEU-4": s / 2}
    )
    history = trainer.run()
    assert [s for s, _ in writer.scalars["train/loss"]] == [2, 4, 6, 7, 8, 10, 12, 14]
    rates = dict(writer.scalars["train/lr"])
    assert rates[2] == pytest.approx(0.01 * (1 - 1 / 14))
    assert writer.scalars["epoch/BLEU-4"] == [(7, 3.5), (14, 7.0)]
    assert writer.scalars["epoch/train_loss"] == [(f["step"], f["train_loss"]) for f in history]


def test_an_epoch_is_one_aligned_row_and_a_run_says_what_it_will_take(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([9.7, 12.0, 2.2e-12])
    figures: Any = lambda step: {"BLEU-4": next(scores), "perplexity": 5000 / step, "CIDEr-D": 1.0}  # noqa: E731
    with caplog.at_level(logging.INFO, logger="captioner"):
        make_trainer(tmp_path, epochs=3, batch_size=1, validate=figures).run()
    forecast, *rows = [r.getMessage() for r in caplog.records if "resum" not in r.getMessage()]
    assert re.match(r"by the first 10 steps: \S+ s an epoch of \d+ steps, \S+ s for all", forecast)
    assert [row.split()[1] for row in rows] == ["1/3", "2/3", "3/3"]
    assert [row.endswith("best so far") for row in rows] == [True, True, False]
    assert [re.search(r"BLEU-4 +(\S+)", row)[1] for row in rows] == ["9.70", "12.00", "0.00"]  # type: ignore[index]
    assert len({row.index("BLEU-4") for row in rows[:2]}) == 1 and "CIDEr" not in rows[0]


# -- what a step costs --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "standardise"])
def test_a_step_reads_no_value_from_the_device(
    tmp_path: Path, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device nothing has a value: whatever asks for one fails, as a graph would."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no meta
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    trainer = make_trainer(tmp_path, label_smoothing=0.1, clip_norm=1.0, clip_value=1.0)
    model = cast(Captioner, trainer.model).to("meta").train()
    model.feature_norm = norm
    step = trainer.step
    step.device = torch.device("meta")
    step.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step.update = WeightUpdate(step.optimizer, step.settings)
    for group in step.optimizer.param_groups:
        group["base_lr"] = 0.1
    running = torch.zeros((), dtype=torch.float64, device="meta")
    assert step([make_dataset()[[3, 1, 7, 8]]], 0, running) > 4
    with pytest.raises(RuntimeError):
        running.item()


def resident_bytes() -> int:
    """This process's memory now, without what is only mapped from files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    pytest.skip("the system does not say RssAnon")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_flat_over_six_hundred_steps(tmp_path: Path) -> None:
    sizes: list[int] = []
    trainer = make_trainer(
        tmp_path,
        epochs=30,
        batch_size=1,
        log_steps=5,
        checkpoint_minutes=60,
        validate=lambda step: sizes.append(resident_bytes()) or {"BLEU-4": 0.0},  # type: ignore[func-returns-value]
    )
    trainer.run()
    assert trainer.progress.step == 600
    assert sizes[-1] - sizes[10] < 1e6  # from step 200 on: less than 2,500 bytes a step
