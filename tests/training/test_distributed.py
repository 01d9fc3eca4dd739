"""Several processes against one: equal losses, weights, metrics; resumed with any number of them.

The processes are this file run as a program: `python test_distributed.py RANK SIZE FOLDER`. Each
runs every case in CASES, and rank 0 keeps what came out; the test runs the same cases alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from script_runner import Process, Scripts
from torch import Tensor, nn

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset, make_loader
from captioner.data.sharding import BatchShard
from captioner.data.text.windows import TextWindows, WindowOrder
from captioner.data.vocabulary import Vocabulary
from captioner.generation import Constraints, beam_search
from captioner.inference.captions import CaptionGenerator
from captioner.models.captioner import Captioner
from captioner.models.encoders import make_encoder
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.models.stream import StreamModel
from captioner.training import background
from captioner.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from captioner.training.distributed import World, failing_once, join, world
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.reporting import Reporting
from captioner.training.setup import TrainerSettings, TrainingSetup
from captioner.training.trainer import Trainer
from captioner.validation.captions import CaptionValidator
from captioner.validation.scores import CaptionScorer

WORDS = ["a", "dog", "cat", "runs", "sits", "on", "the", "grass", "red", "blue"]
VOCABULARY = Vocabulary(WORDS, counts=[1] * (4 + len(WORDS)))
FEATURES = torch.randn(10, 1, 6, generator=torch.Generator().manual_seed(11))
TOKENS = np.random.default_rng(4).integers(1, 14, 400)  # 1 is <bos>: documents begin here and there
pytestmark = pytest.mark.slow  # the processes have to start


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
    """Rows beyond the images are those of their second view."""
    return torch.cat([FEATURES, -FEATURES])[rows]


class Losses:
    """In TensorBoard's place: the mean loss of the epoch so far, after every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if name == "train/loss":
            self.seen.append(value)

    def flush(self) -> None:
        pass


class Stopped(Exception):
    pass


def stop() -> None:
    raise Stopped


class Watched:
    """A loader that acts just before it gives batch number `at`."""

    def __init__(self, loader: Any, at: int, act: Callable[[], None]) -> None:
        self.loader, self.at, self.act, self.given = loader, at, act, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.given == self.at:
                self.act()
            self.given += 1
            yield batch


class Beside:
    """Scores that come some steps after they were asked for, on rank 0 alone."""

    def __init__(self, scorer: CaptionScorer) -> None:
        self.scorer, self.thread = scorer, ThreadPoolExecutor(1)

    def __call__(self, measured: dict[str, Any], *, at_once: bool) -> Future[dict[str, float]]:
        def score() -> dict[str, float]:
            time.sleep(0 if at_once else 0.02)
            return self.scorer(measured)

        return self.thread.submit(score)


def language_model(dropout: float) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        vocab_size=len(VOCABULARY),
        embedding_dim=8,
        hidden_size=8,
        num_layers=2,
        dropout=DropoutRates(dropout, dropout, dropout),
    )


def captioner(
    ranks: World,
    folder: Path,
    *,
    dropout: float = 0.0,
    by_image: bool = False,
    double: bool = True,
    validates: bool = False,
    batch_size: int = 3,
    views: int = 1,
    **settings: Any,
) -> Trainer:
    """A small captioner's trainer: 20 captions, in batches of 3 the last of an epoch has 2."""
    model = Captioner(
        language_model=language_model(dropout),
        feature_dim=6,
        feature_norm="none",
        feature_dropout=dropout,
    )
    dataset = CaptionDataset(
        make_images(), vocabulary=VOCABULARY, source=source, max_length=6, by_image=by_image
    )
    validate: Any = lambda step: {"BLEU-4": float(step)}  # noqa: E731
    score: Any = None
    if validates:
        constraints = Constraints(bos=1, eos=2, max_length=5)
        search = partial(beam_search, constraints=constraints, beam_size=3, n_best=2)
        images = make_images()
        score = Beside(CaptionScorer({image.name: image.captions for image in images}))
        validate = CaptionValidator(
            generator=CaptionGenerator(model, VOCABULARY, search),
            images=images,
            dataset=CaptionDataset(
                make_images(), vocabulary=VOCABULARY, source=source, max_length=6
            ),
            batch_size=2,
            world=ranks,
        )
    if double:
        model.double().image_projection.register_forward_pre_hook(lambda _, x: (x[0].double(),))
    order = BatchOrder(len(dataset), batch_size=batch_size, seed=5, views=views)
    share: Any = dataset
    if ranks.size > 1:
        share = BatchShard(dataset, rank=ranks.rank, size=ranks.size)
    return trainer(
        ranks, folder, model, order, make_loader(share, order, workers=0), validate, settings, score
    )


def with_encoder(ranks: World, folder: Path, *, batch_size: int = 3, **settings: Any) -> Trainer:
    """A captioner whose encoder, BatchNorm and all, is trained from scratch on ten images."""
    torch.manual_seed(1)
    encoder = make_encoder("plain", "plain_small", weights="random").double()
    encoder.freeze_before("stage1")
    images = torch.randn(10, 3, 32, 32, dtype=torch.float64)
    model = Captioner(
        language_model=language_model(0.0),
        feature_dim=encoder.feature_dim,
        feature_norm="none",
        encoder=encoder,
    ).double()
    dataset = CaptionDataset(
        make_images(),
        vocabulary=VOCABULARY,
        source=lambda rows: images[rows],
        max_length=6,
        by_image=True,
    )
    order = BatchOrder(len(dataset), batch_size=batch_size, seed=5)
    share: Any = dataset
    if ranks.size > 1:
        share = BatchShard(dataset, rank=ranks.rank, size=ranks.size)
    loader = make_loader(share, order, workers=0)
    return trainer(ranks, folder, model, order, loader, lambda step: {"BLEU-4": 1.0}, settings)


def text(ranks: World, folder: Path, *, dropout: float = 0.0, **settings: Any) -> Trainer:
    """A language model of five streams, whose documents begin anywhere in a window."""
    model = StreamModel(language_model(dropout)).double()
    windows = TextWindows(TOKENS, batch_size=5, window=7, bos=1, seed=2, streams=ranks.share(5))
    order = WindowOrder(len(windows), epoch_windows=8)
    loader = make_loader(windows, order, workers=0)
    return trainer(ranks, folder, model, order, loader, lambda step: {"BLEU-4": 1.0}, settings)


def trainer(
    ranks: World,
    folder: Path,
    model: nn.Module,
    order: Any,
    loader: Any,
    validate: Any,
    settings: dict[str, Any],
    score: Any = None,
) -> Trainer:
    groups = parameter_groups(model, lr=0.05, weight_decay=0.0, lr_by_prefix={})
    setup = TrainingSetup(
        model=model,
        optimizer=make_optimizer("adam", groups),
        loader=loader,
        order=order,
        validate=validate,
        texts={"vocabulary": VOCABULARY.to_json()},
        score=score,
    )
    return Trainer(
        setup,
        folder=folder,
        settings=TrainerSettings(**{"epochs": 2, "log_steps": 1, "schedule": "cosine", **settings}),
        device=torch.device("cpu"),
        reporting=Reporting(writer=Losses() if ranks.main else None, show_progress=False),
        world=ranks,
    )


def result(one: Trainer) -> dict[str, Any]:
    progress = asdict(one.progress)
    for figures in (progress, *progress["history"]):
        figures.pop("seconds")
    return {
        "losses": [] if one.reporting.writer is None else one.reporting.writer.seen,
        "weights": {k: v.clone() for k, v in one.model.state_dict().items()},
        "progress": progress,
        "best": load_checkpoint(one.folder / "best.pt").model,
    }


Make = Callable[..., Trainer]


def whole(make: Make, ranks: World, folder: Path, **settings: Any) -> dict[str, Any]:
    one = make(ranks, folder, **settings)
    one.run()
    return result(one)


def stopped(make: Make, ranks: World, folder: Path, at: int, **settings: Any) -> None:
    """Train, saving at every step, until batch number `at` of this leg, where all fall over."""
    one = make(ranks, folder, checkpoint_steps=1, **settings)
    one.resume()
    one.loader = Watched(one.loader, at, stop)
    with pytest.raises(Stopped):
        one.run()
    ranks.wait()  # until rank 0 has written its checkpoints, as a new start of all would


def resumed(make: Make, ranks: World, folder: Path, **settings: Any) -> dict[str, Any]:
    """All processes, then the same number, made anew."""
    stopped(make, ranks, folder, 4, **settings)
    torch.manual_seed(999)
    one = make(ranks, folder, **settings)
    one.resume()
    one.run()
    return result(one)


def other_counts(make: Make, ranks: World, folder: Path, **settings: Any) -> dict[str, Any]:
    """All processes, then rank 0 alone, then all again."""
    stopped(make, ranks, folder, 3, **settings)
    if ranks.main:
        stopped(make, World(), folder, 3, **settings)
    with ranks.main_first():
        one = make(World(), folder / "unused", **settings)  # nothing collective in it
    one = make(ranks, folder, **settings)
    one.resume()
    one.run()
    return result(one)


def signalled(make: Make, ranks: World, folder: Path, **settings: Any) -> dict[str, Any]:
    """The last rank alone gets a SIGTERM; all stop after the same step and continue."""
    one = make(ranks, folder, **settings)
    if ranks.rank == ranks.size - 1:
        one.loader = Watched(one.loader, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        one.run()
    assert ranks.gather(one.progress.step) == [5] * ranks.size
    one = make(ranks, folder, **settings)
    one.resume()
    assert one.progress.step == 5
    one.run()
    return result(one)


Case = Callable[[World, Path], dict[str, Any]]
PLAIN: dict[str, Case] = {
    "captions": partial(whole, captioner),
    "views": partial(whole, captioner, by_image=True, views=2),
    "accumulated and clipped": partial(
        whole, captioner, accumulation=2, clip_norm=0.5, clip_value=0.1, label_smoothing=0.1
    ),
    "one caption a batch": partial(whole, captioner, batch_size=1, epochs=1),
    "text": partial(whole, text),
    "encoder": partial(whole, with_encoder),
    "encoder, one image a batch": partial(whole, with_encoder, batch_size=1, epochs=1),
    "validated": partial(whole, captioner, validates=True),
}
STOPPED: dict[str, Case] = {
    "captions, signalled": partial(signalled, captioner),
    "captions, other counts": partial(other_counts, captioner),
    "text, other counts": partial(other_counts, text),
}
# What a third process may change: shares of unequal size, and none at all.
OF_THREE = ("captions", "text", "encoder, one image a batch", "validated")
OTHERS: dict[str, Case] = {
    "bf16": partial(whole, captioner, double=False, bf16=True),
    "dropout": partial(whole, captioner, dropout=0.3),
    "dropout, resumed": partial(resumed, captioner, dropout=0.3),
    "text dropout": partial(whole, text, dropout=0.3),
    "text dropout, resumed": partial(resumed, text, dropout=0.3),
}


def written_late(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as a slow disk does: long after training has gone on."""
    time.sleep(0.02)
    save_checkpoint(path, checkpoint)


def process(rank: int, size: int, folder: Path) -> None:
    """One of the processes: every case, then the weights of all ranks held against each other."""
    join(dist.FileStore(str(folder / "store"), size), rank=rank, size=size)
    background.save_checkpoint = written_late
    found = {}
    for name, case in {**PLAIN, **STOPPED, **OTHERS}.items():
        if size == 3 and name not in OF_THREE:
            continue
        found[name] = case(world(), folder / name)
        all_weights = world().gather(found[name]["weights"])
        for weights in all_weights:
            torch.testing.assert_close(weights, all_weights[0], rtol=0, atol=0)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def start(scripts: Scripts) -> Start:
    """Begin this file as one of the processes."""

    def begin(rank: int, size: int, folder: Path, *more: str) -> Process:
        return scripts.start(folder, Path(__file__), [str(rank), str(size), str(folder), *more])

    return begin


@pytest.fixture(scope="module")
def together(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, start: Start
) -> dict[str, Any]:
    """What each case gave when several processes ran it."""
    size, folder = request.param, tmp_path_factory.mktemp("together")
    processes = [start(rank, size, folder) for rank in range(size)]
    statuses = [one.wait(timeout=300) for one in processes]
    assert statuses == [0] * size, "\n".join(one.stderr for one in processes)
    found: dict[str, Any] = torch.load(folder / "found.pt")
    return found


by_two = pytest.mark.parametrize("together", [2], indirect=True)
by_three = pytest.mark.parametrize("together", [3], indirect=True)
by_two_and_three = pytest.mark.parametrize("together", [2, 3], indirect=True)


def alone(name: str, folder: Path) -> dict[str, Any]:
    """The same case in one process, from its beginning to its end."""
    case = PLAIN.get(name) or PLAIN[name.split(",")[0]]
    return case(World(), folder)


@by_two
@pytest.mark.parametrize("name", PLAIN)
def test_every_loss_and_weight_is_that_of_one_process(
    name: str, together: dict[str, Any], tmp_path: Path
) -> None:
    assert_same_training(together[name], alone(name, tmp_path))


@by_three
@pytest.mark.parametrize("name", [name for name in PLAIN if name in OF_THREE])
def test_three_processes_train_as_one(name: str, together: dict[str, Any], tmp_path: Path) -> None:
    assert_same_training(together[name], alone(name, tmp_path))


def assert_same_training(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert len(theirs["losses"]) == theirs["progress"]["step"] > 7
    # float64, sums in another order; a weight may meet a gradient near 0, which Adam scales up.
    torch.testing.assert_close(mine["losses"], theirs["losses"], rtol=1e-9, atol=0)
    torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=1e-6, atol=1e-8)
    assert mine["progress"]["step"] == theirs["progress"]["step"]


@by_two
@pytest.mark.parametrize("name", STOPPED)
def test_a_run_continues_with_another_number_of_processes(
    name: str, together: dict[str, Any], tmp_path: Path
) -> None:
    mine, theirs = together[name], alone(name, tmp_path)
    count = len(mine["losses"])
    torch.testing.assert_close(mine["losses"], theirs["losses"][-count:], rtol=1e-9, atol=0)
    torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mine["best"], theirs["best"], rtol=1e-6, atol=1e-8)


@by_two
@pytest.mark.parametrize("name", ["dropout", "text dropout"])
def test_resumed_with_the_same_number_a_run_ends_with_the_same_bits(
    name: str, together: dict[str, Any], tmp_path: Path
) -> None:
    mine, theirs = together[f"{name}, resumed"], together[name]
    torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=0, atol=0)
    assert mine["progress"] == theirs["progress"]
    with pytest.raises(AssertionError):  # dropout acts, and each rank's is its own
        torch.testing.assert_close(
            theirs["weights"], OTHERS[name](World(), tmp_path)["weights"], rtol=1e-6, atol=1e-8
        )


@by_two_and_three
def test_metrics_are_exactly_those_of_one_process(together: dict[str, Any], tmp_path: Path) -> None:
    """Ten images in five batches: no rank has another's share."""
    mine, theirs = together["validated"], alone("validated", tmp_path)
    for one, other in zip(mine["progress"]["history"], theirs["progress"]["history"], strict=True):
        assert one.keys() == other.keys() and "CIDEr-D" in one and one["different_captions"] > 0
        for metric, value in other.items():
            assert one[metric] == pytest.approx(value, rel=1e-9), metric


@by_two
def test_bfloat16_trains_as_one_process_does(together: dict[str, Any], tmp_path: Path) -> None:
    theirs = OTHERS["bf16"](World(), tmp_path)
    # bfloat16 rounds to 2^-8, of every product of every rank.
    torch.testing.assert_close(together["bf16"]["losses"], theirs["losses"], rtol=0.01, atol=0)


@by_two_and_three
def test_the_checkpoint_is_an_ordinary_one(together: dict[str, Any], tmp_path: Path) -> None:
    assert together["captions"]["best"].keys() == alone("captions", tmp_path)["best"].keys()


# -- the end of one is the end of all -------------------------------------------------------------


def failing(rank: int, size: int, folder: Path, how: str) -> None:
    """Rank 1 falls over or is killed in the middle of training; the others only miss it."""
    join(dist.FileStore(str(folder / "store"), size), rank=rank, size=size)
    one = captioner(world(), folder, epochs=1000)

    def fall() -> None:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("rank 1 has had enough")

    if rank == 1:
        one.loader = Watched(one.loader, 5, fall)
    with failing_once():
        one.run()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raised", "ValueError: rank 1 has had enough"),
        ("killed", "another process of this run was killed"),
    ],
)
def test_the_failure_of_one_process_ends_all_and_is_said_once(
    how: str, said: str, tmp_path: Path, start: Start
) -> None:
    processes = [start(rank, 2, tmp_path, how) for rank in range(2)]
    begun = time.monotonic()
    statuses = [one.wait(timeout=60) for one in processes]
    assert time.monotonic() - begun < 60
    assert all(statuses)
    texts = [one.stderr for one in processes]
    assert "".join(texts).count(said) == 1, texts
    assert sum("Error" in text for text in texts) == 1, texts


if __name__ == "__main__":
    number, count, where = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    if len(sys.argv) > 4:
        failing(number, count, where, sys.argv[4])
    else:
        process(number, count, where)
