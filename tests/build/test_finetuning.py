"""Training an encoder's last stages from the cached output of those before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config
from PIL import Image

from captioner.build import memory
from captioner.build.checkpoint import load_captioner
from captioner.build.components import build_encoder, load_data
from captioner.build.trainer import build_trainer
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.features.source import CachedFeatures, DecodedImages
from captioner.models.base_captioner import BaseCaptioner
from captioner.training.checkpoint import load_checkpoint
from captioner.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")
SMALL = [
    "data.train=12", "data.dev=4", "data.test=4", "data.size=32", "vocabulary.min_count=1",
    "encoder=plain", "encoder.name=plain_small", "encoder.size=32", "encoder.grid_size=2",
    "encoder.views=[original,mirror]", "model=layered_attention", "model.heads=2",
    "model.attention_dim=8", "model.embedding_dim=8", "model.hidden_size=8",
    "model.feature_norm=standardise", "trainer.batch_size=4", "trainer.epochs=2",
    "trainer.progress=false", "trainer.shown_pictures=0", "trainer.batch_by=picture",
    "generation.max_length=5", "device=cpu", "optimizer.lr=1e-2",
    "encoder.frozen_stages=cached", "encoder.batch_norm=frozen",
]  # fmt: skip
FROZEN, TRAINED = "encoder.train_from=null", "encoder.train_from=stage3"
EXACT = "encoder.cache_dtype=float32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the runs, which share data, features and an encoder's weights."""
    path = tmp_path_factory.mktemp("finetuning")
    config = compose_config("train", [*SMALL, FROZEN, f"run_dir={path}"], configs=CONFIGS)
    trunk = build_encoder(config.encoder, seed=5).trunk
    for name, buffer in trunk.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(0.3)
    torch.save(trunk.state_dict(), path / "encoder.pt")
    return path


def configured(folder: Path, run: str, *changes: str) -> Any:
    places = [f"run_dir={folder}/{run}", f"data.root={folder}/scenes"]
    places += [f"encoder.cache_dir={folder}/features", f"encoder.weights={folder}/encoder.pt"]
    return compose_config("train", [*SMALL, *places, *changes], configs=CONFIGS)


def make(folder: Path, run: str, *changes: str) -> Trainer:
    trainer = build_trainer(configured(folder, run, *changes))
    assert isinstance(trainer, Trainer)
    return trainer


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A captioner of frozen features, after an epoch."""
    make(folder, "frozen", FROZEN, EXACT, "trainer.epochs=1").run()
    return folder / "frozen"


def loss_on_dev(trainer: Trainer) -> float:
    validator: Any = trainer.validations.validate
    return float(validator(0)["loss"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
def test_a_run_starts_where_its_captioner_ended(
    folder: Path, trained: Path, caplog: pytest.LogCaptureFixture, dtype: str, tolerance: float
) -> None:
    expected = load_checkpoint(trained / "best.pt").scores["loss"]
    with caplog.at_level(logging.INFO):
        changes = [TRAINED, f"init_from={trained}", f"encoder.cache_dtype={dtype}"]
        trainer = make(folder, f"start {dtype}", *changes)
    assert loss_on_dev(trainer) == pytest.approx(expected, abs=tolerance)
    assert "trained from stage3.0.0 on; what the stages before make of an image, 32 x 8 x 8 " in (
        caplog.text
    )
    assert "24 tensors those of the encoder whose features it was trained on" in caplog.text


def gradients(trainer: Trainer, rows: Sequence[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the loss of a batch, in training mode and without dropout."""
    torch.manual_seed(0)
    batch = trainer.loader.dataset[rows]  # type: ignore[attr-defined]
    model: Any = trainer.model.train()
    loss = model.loss(*batch.model_inputs, batch.targets) / batch.targets.numel()
    loss.backward()
    found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("norms", ["frozen", "averaged"])
def test_loss_and_gradients_are_those_of_the_whole_network(
    folder: Path, trained: Path, norms: str, dtype: str
) -> None:
    changes = [TRAINED, f"init_from={trained}", f"encoder.batch_norm={norms}"]
    cached = make(folder, f"cached {norms} {dtype}", *changes, f"encoder.cache_dtype={dtype}")
    whole = make(folder, f"computed {norms} {dtype}", *changes, "encoder.frozen_stages=computed")
    assert isinstance(cached.loader.dataset.source, CachedFeatures)  # type: ignore[attr-defined]
    assert isinstance(whole.loader.dataset.source, DecodedImages)  # type: ignore[attr-defined]
    before = {name: buffer.clone() for name, buffer in cached.model.named_buffers()}
    rows = [1, 14, 7, 23]  # of 12 images, the second and the fourth are mirror images
    (loss, found), (expected_loss, expected) = gradients(cached, rows), gradients(whole, rows)
    # Half precision keeps 11 bits of what the frozen stages give: 5e-4 of each number.
    tolerance = 1e-5 if dtype == "float32" else 2e-3
    assert loss == pytest.approx(expected_loss, abs=tolerance)
    assert found.keys() == expected.keys()
    encoder = {name for name in found if name.startswith("encoder.")}
    assert {name.split(".")[2] for name in encoder} == {"stage3", "stage4"} and len(encoder) == 6
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=tolerance, rtol=0)
    buffers, expected_buffers = (dict(one.model.named_buffers()) for one in (cached, whole))
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected_buffers[name], atol=tolerance, rtol=tolerance)
    moved = {name.split(".")[2] for name in buffers if not torch.equal(buffers[name], before[name])}
    assert moved == ({"stage3", "stage4"} if norms == "averaged" else set())


def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(folder: Path, trained: Path) -> None:
    changes = [
        TRAINED, f"init_from={trained}", "encoder.batch_norm=averaged", "model.output_dropout=0.2",
        "encoder.lr=1e-3", "encoder.weight_decay=0.1", "trainer.ema=0.9", "trainer.epochs=2",
        "encoder.crop=1", "encoder.unfreeze_epochs=1", "trainer.keep_epochs=2",
        "encoder.schedule=linear", "encoder.warmup_steps=2",
    ]  # fmt: skip
    whole = make(folder, "whole", *changes)
    start = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.run()
    stopped = make(folder, "stopped", *changes)
    stopped.begin_epoch()
    for batch in islice(iter(stopped.loader), 2):
        stopped.take([batch])
    stopped.stop()
    make(folder, "stopped", *changes, "resume=true").run()
    ends = [load_checkpoint(folder / run / "last.pt").model for run in ("whole", "stopped")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    moved = {name for name in start if not torch.equal(ends[0][name], start[name])}
    of_encoder = {name for name in moved if name.startswith("encoder.")}
    assert {name.split(".")[2] for name in of_encoder} == {"stage3", "stage4"}
    kept = load_checkpoint(folder / "whole" / "epoch_1.pt").model
    first = {name.split(".")[2] for name in of_encoder if not torch.equal(kept[name], start[name])}
    assert first == {"stage4"}  # statistics of BatchNorm included
    assert any("running" in name for name in of_encoder)
    assert {"feature_mean", "feature_std"}.isdisjoint(moved)
    rates = [(one["base_lr"], one["weight_decay"]) for one in whole.optimizer.param_groups]
    assert sorted(rates) == [(1e-3, 0.0), (1e-3, 0.1), (1e-2, 0.0)]  # the optimiser's decay is 0
    steps = whole.total_steps
    last = {"encoder": 1e-3 / steps, "others": 1e-2}  # linear to 0, and constant
    assert sorted(one["lr"] for one in whole.optimizer.param_groups) == pytest.approx(
        [last["encoder"], last["encoder"], last["others"]]
    )
    ahead = [whole.settings.rate_factor(0, steps, one) for one in whole.optimizer.param_groups]
    assert sorted(ahead) == [0.5, 0.5, 1.0]  # of two steps of warm-up


def test_the_finetuned_captioner_captions_images(folder: Path, trained: Path) -> None:
    make(folder, "captions", TRAINED, EXACT, f"init_from={trained}").run()
    loaded = load_captioner(folder / "captions" / "best.pt", device=CPU)
    images = load_data(configured(folder, "unused", FROZEN).data).split("test")
    source = loaded.features.source(images)
    assert isinstance(source, CachedFeatures) and loaded.features.split
    rows = torch.arange(len(images))
    shown = torch.cat([loaded.features.of_image(Image.open(image.path)) for image in images])
    assert shown.shape == (4, 3, 32, 32)
    assert isinstance(loaded.model, BaseCaptioner)
    with torch.no_grad():
        expected, found = loaded.model.features(shown), loaded.model.features(source(rows))
    torch.testing.assert_close(found, expected)
    frozen = load_captioner(trained / "best.pt", device=CPU).features.source(images)(rows)
    assert not torch.allclose(loaded.model.encoder(source(rows)), frozen)  # type: ignore[misc]


def caches(folder: Path) -> set[str]:
    return {path.name for path in (folder / "features").iterdir() if path.name != "captions"}


def test_another_stage_another_encoder_and_another_view_have_caches_of_their_own(
    folder: Path, trained: Path
) -> None:
    make(folder, "key", TRAINED, f"init_from={trained}", "encoder.views=[original]")
    before = caches(folder)
    make(folder, "same", "encoder.train_from=stage3.0", f"init_from={trained}")
    with_mirror = caches(folder)
    make(folder, "again", TRAINED, f"init_from={trained}", "encoder.batch_norm=averaged")
    assert caches(folder) == with_mirror >= before
    make(folder, "stage", "encoder.train_from=stage2", f"init_from={trained}")
    assert len(caches(folder)) == len(with_mirror) + 3  # of two views and of dev
    changed = torch.load(folder / "encoder.pt")
    changed["stage4.0.0.weight"] += 1  # which is trained
    torch.save(changed, folder / "other.pt")
    norm = ["model.feature_norm=none", f"encoder.weights={folder}/other.pt"]
    make(folder, "trained part", TRAINED, *norm)
    assert len(caches(folder)) == len(with_mirror) + 3
    changed["stage1.0.0.weight"] += 1
    torch.save(changed, folder / "other.pt")
    make(folder, "frozen part", TRAINED, *norm)
    assert len(caches(folder)) == len(with_mirror) + 6


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (["encoder.train_from=stage5"], ConfigError,
         r'plain_small has no stage "stage5" to train from; it has stage1\.0, .*stage4'),
        (["encoder.size=48"], CheckpointError, r"trained on other features of images: fingerprint"),
        (["encoder.name=plain"], CheckpointError, r"plain_small.*|another network"),
        (["model.feature_norm=none"], CheckpointError, "trained with model.feature_norm="
         "standardise, here it is none: give model.feature_norm=standardise"),
        (["encoder.train_from=stage1", "encoder.crop=1"], ConfigError,
         r"crop=1 needs a cached map before encoder\.train_from=stage1, and plain_small has none"),
        (["encoder.unfreeze_epochs=2"], ConfigError,
         r"unfreeze_epochs=2 would train stage3\S* from epoch 3 on, but trainer.epochs is 2"),
        (["init_from=null"], ConfigError, r"or the statistics of a trained captioner \(init_from"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    folder: Path, trained: Path, changes: list[str], error: type[Exception], sentence: str
) -> None:
    run = f"refused {changes[0]}".replace("=", " ")
    with pytest.raises(error, match=sentence):
        make(folder, run, TRAINED, f"init_from={trained}", *changes)


def test_an_encoder_that_was_trained_is_not_taken_for_another(folder: Path, trained: Path) -> None:
    make(folder, "earlier", "encoder.train_from=stage2", f"init_from={trained}", EXACT).run()
    start = [f"init_from={folder}/earlier", EXACT]
    with pytest.raises(CheckpointError, match=r"other weights before encoder\.train_from than"):
        make(folder, "stale", TRAINED, *start)
    make(folder, "computed", TRAINED, *start, "encoder.frozen_stages=computed")
    make(folder, "same stage", "encoder.train_from=stage2", *start)
    with pytest.raises(CheckpointError, match=r"go on training it encoder\.train_from=stage2"):
        make(folder, "frozen again", FROZEN, *start)


def test_a_full_disk_is_seen_before_anything_is_computed(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [TRAINED, f"init_from={trained}", f"encoder.cache_dir={folder}/small_disk"]
    needed = (2 * 12 + 4) * 32 * 8 * 8 * 2
    free = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"all images would take 0\.1 MB in encoder\.cache_dir="):
        make(folder, "full", *changes)
    assert not (folder / "small_disk").exists()
    free.free = needed  # type: ignore[attr-defined]
    make(folder, "fits", *changes)


def test_replicas_do_not_share_the_stages_of_different_seeds(folder: Path) -> None:
    changes = [TRAINED, "encoder.weights=random", "model.feature_norm=none", "trainer.replicas=2"]
    with pytest.raises(ConfigError, match=r"replicas share .* take other weights, or encoder"):
        make(folder, "replicas", *changes, "encoder.frozen_stages=cached")


def test_a_trained_encoder_is_frozen_again(folder: Path, trained: Path, tmp_path: Path) -> None:
    """Its features are cached, the captioner goes on where it ended, and can be loaded."""
    tuned = f"{folder}/trained with it"
    make(
        folder, "trained with it", TRAINED, f"init_from={trained}", "trainer.epochs=1", EXACT
    ).run()
    best = f"{tuned}/best.pt"
    given = [FROZEN, EXACT, f"encoder.init_from={best}"]
    again = make(folder, "frozen once more", *given, f"init_from={best}", "trainer.epochs=1")
    assert isinstance(again.loader.dataset.source, CachedFeatures)  # type: ignore[attr-defined]
    assert again.model.encoder is None
    expected = load_checkpoint(Path(best)).scores["loss"]
    assert loss_on_dev(again) == pytest.approx(expected, abs=1e-5)
    again.run()
    loaded = load_captioner(Path(again.folder) / "best.pt", device=CPU)
    assert loaded.features.encoder is not None
    weights = load_checkpoint(Path(best)).model
    for name, tensor in loaded.features.encoder.state_dict().items():
        torch.testing.assert_close(tensor, weights[f"encoder.{name}"], rtol=0, atol=0)
    with pytest.raises(
        CheckpointError, match=r"give encoder.init_from=.*with it/best.pt, or to go"
    ):
        make(folder, "other weights", FROZEN, EXACT, f"init_from={best}")
    with pytest.raises(CheckpointError, match="holds no encoder: its features were a frozen"):
        make(folder, "no encoder", FROZEN, EXACT, f"encoder.init_from={trained}")
