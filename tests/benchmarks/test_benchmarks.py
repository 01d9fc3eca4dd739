"""Every suite on tiny sizes: it runs, implementations agree, and the record has its shape."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    attention,
    command,
    config,
    epoch,
    lstm_implementations,
    replicas,
    scale,
    settings,
)
from benchmarks.captions import (
    LONGEST,
    MEAN,
    Workload,
    build_vocabulary,
    caption_lengths,
    captioned_images,
    load_workload,
    synthetic_images,
)
from benchmarks.command import run_benchmark
from benchmarks.config import BenchmarkConfig
from benchmarks.epoch import peak_memory_of_training
from benchmarks.features import draw_images
from benchmarks.lstm_implementations import DISTINCT, IMPLEMENTATIONS
from benchmarks.memory import peak_bytes
from benchmarks.plain_loop import collate
from benchmarks.settings import (
    BeamBenchmark,
    EpochBenchmark,
    FeaturesBenchmark,
    LstmBenchmark,
    MetricsBenchmark,
    ReplicasBenchmark,
    ScaleBenchmark,
)
from benchmarks.suite import Figure, format_record, reduce, write_record
from benchmarks.timing import Spread, interleaved, paired_ratio
from benchmarks.training import (
    CASES,
    GEMMS,
    PLAIN,
    GemmSteps,
    StepSettings,
    TimedSteps,
    Training,
)
from benchmarks.worker import Worker
from captioner.commands.cli import compose_config
from captioner.config import BACKENDS, COMMANDS, TrainConfig, known_keys
from captioner.data.tokenize import tokenize
from captioner.errors import CaptionerError, ConfigError, DataError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A benchmark sets torch's threads on purpose; the other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
RECORDS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))


def tiny(suite: str, **parts: Any) -> BenchmarkConfig:
    return BenchmarkConfig(suite=suite, device="cpu", threads=1, repeats=2, **parts)


def check_shape(record: dict[str, Any], suite: str, names: set[str]) -> None:
    """The record is JSON, says where and with what it was taken, and every figure has its unit."""
    assert json.loads(json.dumps(record)) == record
    assert record["suite"] == suite
    assert set(record) == {
        *("suite", "date", "machine", "versions", "command", "spread", "settings"),
        *("figures", "requirements"),
    }
    assert record["machine"]["threads"] == 1
    assert record["machine"]["cores"] >= 1 and record["machine"]["cpu"]
    assert record["versions"]["torch"] == torch.__version__
    assert {one["implementation"] for one in record["figures"]} == names
    for one in (*record["figures"], *record["requirements"]):
        assert one["unit"] and one["repeats"]
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
    settings = BeamBenchmark(images=6, beam_size=2, batch_size=4, hidden_size=16)
    record = run_benchmark(tiny("beam", beam=settings))
    check_shape(record, "beam", {"batched", "one image at a time"})
    assert requirement(record, "captions that differ")["median"] == 0
    assert requirement(record, "speed of batched")["at_least"] == 5
    assert 1 < record["settings"]["mean_words"] < 30


def test_metrics_suite_finds_the_same_scores_both_ways() -> None:
    settings = MetricsBenchmark(images=20, memory_images=[20, 40])
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
    settings = FeaturesBenchmark(
        encoder="torchvision/shufflenet_v2_x0_5",
        pictures=3,
        picture_side=64,
        batch_size=2,
        workers=0,
        readers=["pil", "torchvision"],
    )
    record = run_benchmark(tiny("features", features=settings))
    names = {"bare encoder", "bare encoder at its fastest", "pil", "torchvision"}
    check_shape(record, "features", names)
    assert record["settings"]["workers"] == 0 and record["settings"]["fastest_batch_size"] == 2
    assert requirement(record, "largest difference of a feature by pil")["at_most"] == 1e-5
    assert requirement(record, "largest difference of a feature by pil")["met"]
    assert (
        0 < requirement(record, "largest difference of a feature by torchvision")["median"] < 0.05
    )
    for bare in ("bare encoder's", "bare encoder at its fastest's"):
        assert requirement(record, f"rate of pil to the {bare}")["at_least"] == 0.9
    assert {one["unit"] for one in record["figures"]} == {"images/s"}
    assert not encoders[0].training


def test_features_suite_measures_grids_in_half_precision() -> None:
    settings = FeaturesBenchmark(
        encoder="torchvision/shufflenet_v2_x0_5", output="grid", pictures=3, picture_side=64
    )
    record = run_benchmark(tiny("features", features=settings))
    assert record["settings"]["output"] == "grid"
    difference = requirement(record, "largest difference of a feature by pil")
    assert 1e-6 < difference["median"] < difference["at_most"] == 1e-3


@pytest.mark.usefixtures("forked_workers")
def test_epoch_suite_takes_the_plain_loops_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "adam_256", StepSettings(hidden_size=8, batch_size=6, clip_norm=5.0))
    settings = EpochBenchmark(
        images=40,
        feature_dim=12,
        cases=["adam_256"],
        steps=3,
        memory=False,
        backends=["reference", "auto"],
    )
    record = run_benchmark(tiny("epoch", epoch=settings))
    check_shape(record, "epoch", {PLAIN, GEMMS, "reference", "auto"})
    for backend, asked in (("reference", 1.0), ("auto", 2.0)):
        assert requirement(record, f"losses of {backend}")["median"] < 1e-5
        assert requirement(record, f"speed of {backend}")["at_least"] == asked
    by_name = {one["what"]: one for one in record["figures"]}
    # 200 captions in batches of 6: milliseconds a step, seconds an epoch, tokens a second
    seconds = 34 * by_name["a step"]["median"] / 1e3
    assert by_name["an epoch"]["median"] == pytest.approx(seconds, rel=1e-4)
    tokens = record["settings"]["tokens"]
    fastest = tokens / by_name["an epoch"]["min"]
    assert by_name["tokens a second"]["max"] == pytest.approx(fastest, rel=1e-4)
    assert tokens == sum(
        len(tokenize(c)) + 1 for i in synthetic_images(40, seed=0) for c in i.captions
    )


def training(settings: StepSettings, images: int = 20) -> Training:
    return Training(workload=Workload(images, 12), settings=settings, device=CPU)


def curves(settings: StepSettings, steps: int, images: int = 20) -> tuple[list[float], list[float]]:
    """Losses of the plain loop and of this package's step, from the same first weights."""
    one = training(settings, images)
    return one.build(PLAIN).losses(steps), one.build("auto").losses(steps)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"lr": 1e-2, "clip_norm": 1.0},
        {"optimizer": "rmsprop", "lr": 1e-3, "arguments": {"alpha": 0.99}, "clip_value": 0.01},
    ],
)
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


@pytest.mark.usefixtures("forked_workers")
def test_scale_suite_varies_one_size_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "BASE", StepSettings(hidden_size=8, batch_size=6, clip_norm=5.0))
    monkeypatch.setattr(scale, "BASE_IMAGES", 20)
    settings = ScaleBenchmark(
        images=[10, 30],
        batch_sizes=[3],
        vocabularies=[50],
        hidden_sizes=[4],
        feature_dim=12,
        steps=2,
    )
    config = tiny("scale", scale=settings)
    config.plot = str(tmp_path / "scale.png")
    record = run_benchmark(config)
    sizes = [(one["what"], one["axes"]) for one in record["figures"]]
    assert ("an epoch", {"images": 30}) in sizes and ("a step", {"vocabulary": 50}) in sizes
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
        assert settings.optimizer == optimizer.name
        for key in ("lr", "weight_decay", "clip_norm", "clip_value"):
            assert getattr(settings, key) == getattr(optimizer, key), (case, key)
        for key, value in settings.arguments.items():
            assert value == getattr(optimizer, key)


def test_gemms_are_those_of_the_batches() -> None:
    one = training(StepSettings(hidden_size=8, batch_size=6), images=4)
    steps = one.build(GEMMS)
    steps.steps(5)
    assert isinstance(steps, GemmSteps)
    shapes = {name: tuple(tensor.shape) for name, tensor in steps.gemms.buffers.items()}
    assert shapes["vocabulary w"][1] == 8 and shapes["vocabulary w"][0] >= one.data.vocab_size
    assert shapes["image x"][1] == 12 and "image dx" not in shapes


@pytest.mark.usefixtures("forked_workers")
def test_a_failure_is_told_by_the_other_process() -> None:
    one = training(StepSettings(hidden_size=4, batch_size=2), images=2)
    worker = Worker(TimedSteps, "no-such-backend", one, 1, threads=1)
    with worker, pytest.raises(CaptionerError, match="no-such-backend"):
        worker.call("seconds", 1)


@pytest.mark.usefixtures("forked_workers")
def test_replicas_suite_takes_as_many_steps_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was measured before is not measured again."""
    settings = ReplicasBenchmark(
        replicas=[2],
        images=10,
        feature_dim=12,
        cases=["adam_256"],
        batch_sizes=[4],
        steps=2,
        folder=str(tmp_path),
    )
    record = run_benchmark(tiny("replicas", replicas=settings))
    check_shape(record, "replicas", {"one after another", "a process each", "replicas"})
    assert requirement(record, "time of replicas")["axes"]["K"] == 2

    def refuse(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(replicas, "_measure", refuse)
    again = run_benchmark(tiny("replicas", replicas=settings))
    assert again["figures"] == record["figures"]
    with pytest.raises(AssertionError, match="measured again"):
        run_benchmark(tiny("replicas", replicas=dataclasses.replace(settings, steps=3)))


def test_peak_memory_is_that_of_a_whole_run() -> None:
    peak = peak_memory_of_training(synthetic_images(24, seed=0), data_root=None, seed=0)
    assert 5e7 < peak < 1.5e9


@pytest.mark.usefixtures("forked_workers")
def test_a_run_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "FEATURES", "no_such_ending.bin")
    monkeypatch.setattr(epoch.np, "save", lambda *_: None)
    with pytest.raises(CaptionerError, match=r"features\.npy"):
        peak_memory_of_training(synthetic_images(2, seed=0), data_root=None, seed=0)


# -- its parts ----------------------------------------------------------------------------------


def test_calls_are_taken_in_turn_after_the_warm_up() -> None:
    calls: list[str] = []
    timed = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    taken = interleaved(timed, repeats=3, device=CPU, warmup=2)
    assert "".join(calls) == "aabb" + "ababab"
    assert [len(spread.values) for spread in taken.values()] == [3, 3]


def test_ratios_pair_neighbours_and_requirements_judge_the_median() -> None:
    slow, fast = Spread((2.0, 40.0, 4.0)), Spread((1.0, 10.0, 4.0))
    ratio = paired_ratio(slow, fast)
    assert ratio.values == (2.0, 4.0, 1.0)
    assert (min(ratio.values), ratio.median, max(ratio.values)) == (1.0, 2.0, 4.0)

    def judged(**bounds: float) -> bool:
        return Figure("speed", "", "times", ratio, **bounds).met  # type: ignore[arg-type]

    assert judged(at_least=2.0)
    assert not judged(at_least=2.1)
    assert not judged(at_most=1.9)


def test_records_keep_spreads_instead_of_repeats_a_figure_a_line(tmp_path: Path) -> None:
    assert reduce([4.0, 1.0, 2.0]) == {"repeats": 3, "median": 2.0, "min": 1.0, "max": 4.0}
    many = reduce([1.0, 2.0, 3.0, 4.0, 1000 / 3])
    assert (many["q1"], many["q3"], many["max"]) == (2.0, 4.0, 333.333)
    record = {"suite": "some", "settings": {"batches": [{"B": 1}] * 90}, "figures": [many] * 5}
    write_record(tmp_path / "record.json", record)
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text) == record and len(text.splitlines()) == 90 + 5 + 9


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_records_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 1000
    assert json.loads(path.read_text(encoding="utf-8"))


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


def test_drawn_images_are_jpegs_of_the_asked_size(tmp_path: Path) -> None:
    from PIL import Image

    one, _ = draw_images(tmp_path, 2, size=96, seed=0)
    with Image.open(one.path) as image:
        assert (image.format, image.size, one.path.name) == ("JPEG", (96, 96), one.name)


def test_a_workload_is_flickr8ks_likeness() -> None:
    data = load_workload(Workload(400, 8, seed=1))
    assert data.features.shape == (400, 1, 8) and data.features.dtype == torch.float32
    assert abs(float(data.features.mean())) < 0.1 and abs(float(data.features.std()) - 1) < 0.1
    lengths = data.dataset.store.lengths - 1
    assert len(lengths) == 2000 and int(lengths.max()) == LONGEST
    assert abs(float(lengths.float().mean()) - MEAN) < 0.3
    assert data.tokens == int(lengths.sum()) + 2000


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
        (lambda: EpochBenchmark(cases=["neo"]), "did you mean 'neon'"),
        (lambda: EpochBenchmark(backends=["tourch"]), "did you mean 'torch'"),
        (lambda: FeaturesBenchmark(encoder="resnet18"), "KIND/NAME"),
        (lambda: LstmBenchmark(dtypes=["float33"]), "float32"),
        (lambda: LstmBenchmark(lengths=["equals"]), "did you mean 'equal'"),
        (lambda: LstmBenchmark(backends=["auto"]), "reference, torch, padded, fused"),
        (lambda: tiny("beam", plot="beam.png"), "plot draws suite=lstm and suite=scale"),
        (lambda: BeamBenchmark(images=0), "beam.images must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(part: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part()


def test_configuration_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "benchmark", BenchmarkConfig)
    config = compose_config("benchmark", ["suite=epoch", "repeats=3"], configs=CONFIGS)
    assert isinstance(config, BenchmarkConfig) and config.repeats == 3


def test_what_a_setting_may_be_is_what_the_suites_have() -> None:
    assert tuple(command.SUITES) == config.SUITES
    assert tuple(CASES) == settings.CASES
    assert tuple(attention.MODELS) == settings.ATTENTION_MODELS
    assert tuple(lstm_implementations.DTYPES) == settings.DTYPES
    assert settings.BACKENDS == BACKENDS
    layers = [one for one in IMPLEMENTATIONS if one != DISTINCT]
    assert sorted(settings.LSTM_BACKENDS) == sorted(layers)


def test_nested_keys_are_known_to_the_command_line() -> None:
    keys = known_keys(BenchmarkConfig)
    assert {"epoch.cases", "lstm.dtypes", "repeats"} <= set(keys)
    assert "vocabulary.min_count" in known_keys(TrainConfig)
