"""Every suite on tiny sizes: it runs, its sides agree, and the record has its shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import scale, schema
from benchmarks.command import run_benchmark
from benchmarks.drawn_pictures import draw_pictures
from benchmarks.epoch_settings import CASES, StepSettings
from benchmarks.epoch_sides import COMPILED, PLAIN, PRODUCTS, Parts, Workload, build_side
from benchmarks.lengths import caption_lengths
from benchmarks.plain_loop import collate
from benchmarks.record import Requirement, format_record
from benchmarks.side_process import SideProcess
from benchmarks.timing import Spread, interleaved, paired_ratio
from benchmarks.train_memory import peak_bytes, peak_memory_of_training
from benchmarks.workload import (
    build_vocabulary,
    captioned_images,
    synthetic_images,
)
from captioner.commands.cli import compose_config
from captioner.config import COMMANDS, TrainConfig, known_keys
from captioner.data.tokenize import tokenize
from captioner.errors import CaptionerError, ConfigError, DataError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A benchmark sets torch's threads on purpose; the other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


CONFIGS = Path(__file__).parents[2] / "configs"


def tiny(suite: str, **parts: Any) -> schema.BenchmarkConfig:
    return schema.BenchmarkConfig(suite=suite, device="cpu", threads=1, repeats=2, **parts)


def check_shape(record: dict[str, Any], suite: str, sides: set[str]) -> None:
    """The record is JSON, says where and with what it was taken, and every figure has its unit."""
    assert json.loads(json.dumps(record)) == record
    assert record["suite"] == suite
    assert set(record) == {
        "suite", "date", "machine", "versions", "command", "settings", "figures", "requirements"
    }  # fmt: skip
    assert record["machine"]["threads"] == 1
    assert record["machine"]["cores"] >= 1 and record["machine"]["cpu"]
    assert record["versions"]["torch"] == torch.__version__
    assert {one["side"] for one in record["figures"]} == sides
    for one in (*record["figures"], *record["requirements"]):
        assert one["unit"] and one["values"]
        assert one["min"] <= one["median"] <= one["max"]
    for one in record["requirements"]:
        assert (one["at_least"] is None) != (one["at_most"] is None)
    table = format_record(record)
    assert all(one["what"] in table for one in record["figures"])


def requirement(record: dict[str, Any], start: str) -> dict[str, Any]:
    (found,) = [one for one in record["requirements"] if one["what"].startswith(start)]
    return found


# -- the suites ---------------------------------------------------------------------------------


def test_beam_suite_finds_the_same_captions_both_ways() -> None:
    settings = schema.BeamBenchmark(images=6, beam_size=2, batch_size=4, hidden_size=16)
    record = run_benchmark(tiny("beam", beam=settings))
    check_shape(record, "beam", {"batched", "one image at a time"})
    assert requirement(record, "captions that differ")["median"] == 0
    assert requirement(record, "speed of batched")["at_least"] == 5
    assert 1 < record["settings"]["mean_words"] < 30


def test_metrics_suite_finds_the_same_scores_both_ways() -> None:
    settings = schema.MetricsBenchmark(images=20, memory_images=[20, 40])
    record = run_benchmark(tiny("metrics", metrics=settings))
    sides = {"captioner", "captioner, once tokenised"}
    if shutil.which("java") and find_spec("pycocoevalcap"):
        sides.add("pycocoevalcap")
        assert requirement(record, "largest difference")["met"]
    check_shape(record, "metrics", sides)
    assert requirement(record, "time once tokenised")["met"]


def test_features_suite_gives_the_bare_encoders_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import features

    encoders = []

    def remembered(*args: Any, **kwargs: Any) -> Any:
        encoders.append(build(*args, **kwargs))
        return encoders[-1]

    build = features.build_encoder
    monkeypatch.setattr(features, "build_encoder", remembered)
    settings = schema.FeaturesBenchmark(
        encoder="torchvision/mobilenet_v3_small", pictures=3, picture_side=64, batch_size=2,
        workers=0,
    )  # fmt: skip
    record = run_benchmark(tiny("features", features=settings))
    sides = {"bare encoder", "bare encoder at its fastest", "extraction"}
    check_shape(record, "features", sides)
    assert record["settings"]["workers"] == 0 and record["settings"]["fastest_batch_size"] == 2
    assert requirement(record, "largest difference")["met"]
    for bare in ("bare encoder's", "bare encoder at its fastest's"):
        assert requirement(record, f"rate of extraction to the {bare}")["at_least"] == 0.9
    assert {one["unit"] for one in record["figures"]} == {"images/s"}
    assert not encoders[0].training


def test_epoch_suite_takes_the_plain_loops_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "adam_256", StepSettings(hidden_size=8, batch_size=6, clip_norm=5.0))
    settings = schema.EpochBenchmark(
        images=40, feature_dim=12, cases=["adam_256"], steps=3, memory=False,
        backends=["reference", "auto"],
    )  # fmt: skip
    record = run_benchmark(tiny("epoch", epoch=settings))
    check_shape(record, "epoch", {PLAIN, PRODUCTS, "reference", "auto"})
    for backend, asked in (("reference", 1.0), ("auto", 2.0)):
        assert requirement(record, f"losses of {backend}")["median"] < 1e-5
        assert requirement(record, f"speed of {backend}")["at_least"] == asked
    by_name = {one["what"]: one for one in record["figures"]}
    # 200 captions in batches of 6: milliseconds a step, seconds a pass, tokens a second
    a_pass = 34 * by_name["a step"]["median"] / 1e3
    assert by_name["a pass"]["median"] == pytest.approx(a_pass)
    tokens = record["settings"]["tokens"]
    rates = [tokens / seconds for seconds in by_name["a pass"]["values"]]
    assert sorted(by_name["tokens a second"]["values"]) == pytest.approx(sorted(rates), rel=0.01)
    assert tokens == sum(
        len(tokenize(c)) + 1 for i in synthetic_images(40, seed=0) for c in i.captions
    )


def workload(images: int, feature_dim: int = 12) -> Workload:
    return Workload(images=images, feature_dim=feature_dim, data_root=None, seed=0, device=CPU)


def curves(settings: StepSettings, steps: int, images: int = 20) -> tuple[list[float], list[float]]:
    """Losses of the plain loop and of this package's step, from the same first weights."""
    plain, own = (build_side(name, workload(images), settings) for name in (PLAIN, "auto"))
    plain.steps(steps)
    own.steps(steps)
    return plain.losses, own.losses


@pytest.mark.parametrize("optimizer", [
    {"lr": 1e-2, "clip_norm": 1.0},
    {"optimizer": "rmsprop", "lr": 1e-3, "arguments": {"alpha": 0.99}, "clip_value": 0.01},
])  # fmt: skip
def test_the_fast_step_trains_as_the_plain_loop_does(optimizer: dict[str, Any]) -> None:
    """A hundred steps from one seed: the curves differ by float32's rounding alone."""
    plain, own = curves(StepSettings(hidden_size=24, batch_size=16, **optimizer), 100)
    assert plain[-1] < 0.8 * plain[0]
    assert own[:10] == pytest.approx(plain[:10], rel=1e-5)
    assert own == pytest.approx(plain, rel=1e-3)


def test_losses_fall_apart_with_another_clipping() -> None:
    plain = curves(StepSettings(hidden_size=8, batch_size=6, lr=0.1, clip_norm=5.0), 4)[0]
    own = curves(StepSettings(hidden_size=8, batch_size=6, lr=0.1, clip_value=1e-4), 4)[1]
    assert own[0] == pytest.approx(plain[0], abs=1e-6)
    assert max(abs(a - b) for a, b in zip(plain, own, strict=True)) > 0.01


def test_loops_go_on_past_the_end_of_an_epoch() -> None:
    plain, own = curves(StepSettings(hidden_size=4, batch_size=4), 7, images=2)  # 3 an epoch
    assert len(own) == 7 and own == pytest.approx(plain, abs=1e-4)


def test_scale_suite_varies_one_size_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "BASE", StepSettings(hidden_size=8, batch_size=6, clip_norm=5.0))
    monkeypatch.setattr(scale, "BASE_IMAGES", 20)
    settings = schema.ScaleBenchmark(
        images=[10, 30], batch_sizes=[3], vocabularies=[50], hidden_sizes=[4], feature_dim=12,
        steps=2,
    )  # fmt: skip
    config = tiny("scale", scale=settings)
    config.plot = str(tmp_path / "scale.png")
    record = run_benchmark(config)
    sizes = [(one["what"], one["axes"]) for one in record["figures"]]
    assert ("a pass", {"images": 30}) in sizes and ("a step", {"vocabulary": 50}) in sizes
    assert len(sizes) == 2 * 3 + 3 * 2
    assert (tmp_path / "scale.png").stat().st_size > 10_000


def test_a_line_is_straight_and_a_square_is_not() -> None:
    x = [1.0, 2.0, 4.0, 8.0]
    assert scale.bent(x, [3 + 2 * v for v in x]) < 1e-9
    assert scale.bent(x, [v * v for v in x]) > scale.BENT


def test_cases_are_the_experiments_settings() -> None:
    for case in ("neuraltalk", "neon", "nic"):
        config = compose_config(
            "train", [f"experiment={case}_flickr8k", "data.root=x"], configs=CONFIGS
        )
        settings, optimizer = CASES[case], config.optimizer
        assert settings.batch_size == config.trainer.batch_size
        assert settings.hidden_size == config.model.hidden_size == config.model.embedding_dim
        assert settings.input_dropout == config.model.input_dropout
        assert settings.output_dropout == config.model.output_dropout
        for ours, theirs in (("optimizer", "name"), *[(k, k) for k in (
            "lr", "weight_decay", "clip_norm", "clip_value")]):  # fmt: skip
            assert getattr(settings, ours) == getattr(optimizer, theirs), (case, ours)
        for key, value in settings.arguments.items():
            assert value == getattr(optimizer, key)


def test_products_are_those_of_the_batches() -> None:
    settings = StepSettings(hidden_size=8, batch_size=6)
    side = build_side(PRODUCTS, workload(4), settings)
    side.steps(5)
    shapes = {name: tuple(tensor.shape) for name, tensor in side._numbers.items()}  # type: ignore[attr-defined]
    words = Parts(workload(4), settings).vocab_size
    assert shapes["vocabulary w"][1] == 8 and shapes["vocabulary w"][0] >= words
    assert shapes["image x"][1] == 12 and "image dx" not in shapes
    assert COMPILED not in shapes


def test_a_side_that_fails_says_so_in_the_other_process() -> None:
    arguments = ("no such backend", workload(2), StepSettings(hidden_size=4, batch_size=2))
    side = SideProcess(build_side, *arguments, threads=1, device=CPU)
    with side, pytest.raises(CaptionerError, match="no such backend"):
        side.seconds(1)


def test_peak_memory_is_that_of_a_whole_run() -> None:
    peak = peak_memory_of_training(synthetic_images(24, seed=0), data_root=None, seed=0)
    assert 5e7 < peak < 1.5e9


def test_a_run_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import train_memory

    monkeypatch.setattr(train_memory, "__name__", "captioner.no_such_module")
    with pytest.raises(CaptionerError, match="no_such_module"):
        peak_memory_of_training(synthetic_images(2, seed=0), data_root=None, seed=0)


# -- its parts ----------------------------------------------------------------------------------


def test_sides_are_taken_in_turn_after_the_warm_up() -> None:
    calls: list[str] = []
    sides = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    taken = interleaved(sides, repeats=3, device=CPU, warmup=2)
    assert "".join(calls) == "aabb" + "ababab"
    assert [len(spread.values) for spread in taken.values()] == [3, 3]


def test_ratios_pair_neighbours_and_requirements_judge_the_median() -> None:
    slow, fast = Spread((2.0, 40.0, 4.0)), Spread((1.0, 10.0, 4.0))
    ratio = paired_ratio(slow, fast)
    assert ratio.values == (2.0, 4.0, 1.0)
    assert (ratio.low, ratio.median, ratio.high) == (1.0, 2.0, 4.0)
    assert Requirement("speed", "times", ratio, at_least=2.0).met
    assert not Requirement("speed", "times", ratio, at_least=2.1).met
    assert not Requirement("memory", "MB", ratio, at_most=1.9).met


def test_peak_of_this_process_is_in_bytes() -> None:
    assert 2e7 < peak_bytes() < 1e11


def test_synthetic_vocabulary_is_as_large_as_flickr8ks() -> None:
    images = synthetic_images(6000, seed=0)
    assert len(build_vocabulary(images)) == 2540 + 4
    again = synthetic_images(6000, seed=0)
    assert images == again
    assert images[0].captions != synthetic_images(6000, seed=1)[0].captions
    words = [tokenize(caption) for caption in images[0].captions]
    assert [len(w) for w in words] == caption_lengths(30_000, seed=0)[:5].tolist()


def test_too_few_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    with pytest.raises(DataError):
        captioned_images(10, data_root=str(tmp_path), seed=0)


def test_drawn_pictures_are_jpegs_of_the_asked_size(tmp_path: Path) -> None:
    from PIL import Image

    (name, path), _ = draw_pictures(tmp_path, 2, side=96, seed=0)
    with Image.open(path) as picture:
        assert (picture.format, picture.size, path.name) == ("JPEG", (96, 96), name)


def test_collate_puts_the_longest_first() -> None:
    items = [(torch.ones(2), torch.tensor([1, 2])), (torch.zeros(2), torch.tensor([1, 5, 2]))]
    features, captions, lengths = collate(items)
    assert features[:, 0].tolist() == [0, 1]
    assert captions.tolist() == [[1, 5, 2], [1, 2, 0]]
    assert lengths.tolist() == [3, 2]


# -- configuration and script -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: tiny("lstn"), "did you mean 'lstm'"),
        (lambda: schema.EpochBenchmark(cases=["neo"]), "did you mean 'neon'"),
        (lambda: schema.EpochBenchmark(backends=["tourch"]), "did you mean 'torch'"),
        (lambda: schema.FeaturesBenchmark(encoder="resnet18"), "KIND/NAME"),
        (lambda: schema.LstmBenchmark(dtypes=["float33"]), "float32"),
        (lambda: schema.LstmBenchmark(lengths=["equals"]), "did you mean 'equal'"),
        (lambda: schema.LstmBenchmark(backends=["auto"]), "reference, torch, padded, fused"),
        (lambda: tiny("beam", plot="beam.png"), "plot draws suite=lstm and suite=scale"),
        (lambda: schema.BeamBenchmark(images=0), "beam.images must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(part: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part()


def test_configuration_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "benchmark", schema.BenchmarkConfig)
    config = compose_config("benchmark", ["suite=epoch", "repeats=3"], configs=CONFIGS)
    assert isinstance(config, schema.BenchmarkConfig) and config.repeats == 3


def test_nested_keys_are_known_to_the_command_line() -> None:
    keys = known_keys(schema.BenchmarkConfig)
    assert {"epoch.cases", "lstm.dtypes", "repeats"} <= set(keys)
    assert "vocabulary.min_count" in known_keys(TrainConfig)
