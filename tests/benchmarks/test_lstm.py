"""suite=lstm on tiny sizes: implementations agree, roofline and promises are what they say."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import lstm, lstm_implementations, plots
from benchmarks.command import format_suite, run_benchmark
from benchmarks.config import BenchmarkConfig
from benchmarks.lstm import GEMMS
from benchmarks.lstm_implementations import (
    BACKWARD,
    BASELINE,
    BOTH,
    DISTINCT,
    FORWARD,
    FUSED,
    IMPLEMENTATIONS,
    Case,
    Cell,
    Layer,
    make_case,
)
from benchmarks.memory import peak_allocated
from benchmarks.settings import LstmBenchmark
from benchmarks.suite import SuiteResult, float32_products
from benchmarks.timing import Prepared, Spread, interleaved
from captioner.errors import ConfigError
from captioner.models.lstm import LSTM

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Cell("flickr8k", "float64", 8, 4)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lstm, "MIN_SECONDS", 0.0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installation without the extension."""

    def choose(requested: str, device_type: str) -> str:
        raise ConfigError(f"LSTM backend {requested!r} is not built")

    monkeypatch.setattr(lstm_implementations, "choose_backend", choose)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference in the fused backend's place: both of its implementations run everywhere."""

    def distinct(case: Case) -> Layer:
        size = case.layer.hidden_size
        layer = LSTM(size, size, backend="reference", dtype=torch.float64)
        layer.load_state_dict(case.layer.state_dict())
        table = case.table.clone().requires_grad_()
        return Layer(
            forward=lambda: layer.forward_packed(table[case.input_rows], case.batch_sizes)[0],
            grad_output=case.grad_output,
            leaves=(table, *layer.parameters()),
            distinct=lambda gradient: gradient,
        )

    monkeypatch.setitem(IMPLEMENTATIONS, FUSED, IMPLEMENTATIONS["reference"])
    monkeypatch.setitem(IMPLEMENTATIONS, DISTINCT, distinct)
    monkeypatch.setattr(lstm, "why_absent", lambda name, device: None)


def run(**settings: Any) -> dict[str, Any]:
    part = LstmBenchmark(
        **{"batch_sizes": [3, 5], "hidden_sizes": [8], "dtypes": ["float64"], **settings}
    )
    return run_benchmark(
        BenchmarkConfig(suite="lstm", device="cpu", threads=1, repeats=2, lstm=part)
    )


def found(record: dict[str, Any], what: str, name: str) -> list[dict[str, Any]]:
    return [x for x in record["figures"] if (x["what"], x["implementation"]) == (what, name)]


# -- the suite ----------------------------------------------------------------------------------


def test_every_implementation_is_measured_on_the_whole_grid(stand_in: None) -> None:
    record = run(lengths=["flickr8k", "equal", "outlier"])
    assert json.loads(json.dumps(record)) == record
    names = {BASELINE, "reference", "padded", FUSED, DISTINCT}
    assert {one["implementation"] for one in record["figures"]} == {*names, GEMMS}
    cells = {tuple(one["axes"].values()) for one in record["figures"]}
    assert len(cells) == 3 * 2
    for name in names:
        for what in (FORWARD, BACKWARD, BOTH):
            units = [one["unit"] for one in found(record, what, name)]
            assert sorted(units) == ["ms"] * 6 + ["tokens/s"] * 6
            assert len(found(record, f"{what}, share of the roofline", name)) == 6
            assert len(found(record, f"{what}, speed to torch", name)) == 6 * (name != BASELINE)
        assert len(found(record, "peak memory", name)) == 6
    assert len(found(record, f"{BOTH}, speed to fused", DISTINCT)) == 6
    assert len(found(record, f"{BOTH}, speed to padded", FUSED)) == 6
    batches = record["settings"]["batches"]
    assert [one["tokens"] for one in batches if one["lengths"] == "equal"] == [39, 65]
    assert all(one["distinct_rows"] < one["tokens"] for one in batches)
    assert len(record["requirements"]) == 6 * 4
    assert all(one["met"] and "difference" in one["what"] for one in record["requirements"])
    table = format_suite(record)
    assert "H 8, B 5" in table and DISTINCT in table and "NOT MET" not in table


def test_what_is_not_built_is_skipped_aloud(
    no_fused: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="captioner"):
        record = run(batch_sizes=[2])
    assert "fused is skipped: LSTM backend 'fused' is not built" in caplog.text
    assert set(record["settings"]["skipped"]) == {FUSED, DISTINCT}
    assert {one["implementation"] for one in record["figures"]} == {
        BASELINE,
        "reference",
        "padded",
        GEMMS,
    }
    assert "fused is skipped: LSTM backend 'fused' is not built" in format_suite(record)


def difference(layers: dict[str, Layer]) -> bool:
    result = SuiteResult()
    lstm.require_agreement(result, layers, TINY)
    (only,) = result.requirements
    return only.met


@pytest.mark.parametrize("name", ["reference", "padded", FUSED, DISTINCT])
def test_implementations_differ_where_a_weight_does(name: str, stand_in: None) -> None:
    case = make_case(TINY, device=CPU, seed=0)
    layers = {one: IMPLEMENTATIONS[one](case) for one in (BASELINE, name)}
    assert difference(layers)
    changed = make_case(TINY, device=CPU, seed=0)
    with torch.no_grad():
        changed.layer.weight_ih_l0[0, 0] += 1e-3
    assert not difference({**layers, name: IMPLEMENTATIONS[name](changed)})


def test_implementations_differ_where_one_gradient_does() -> None:
    case = make_case(TINY, device=CPU, seed=0)
    layers = {name: IMPLEMENTATIONS[name](case) for name in (BASELINE, "reference")}
    rows = layers["reference"].leaves[0]
    rows.register_hook(lambda gradient: gradient * (1 + 1e-6))
    assert not difference(layers)


# -- the roofline -------------------------------------------------------------------------------


def test_the_gemms_are_the_layers_own() -> None:
    """Counted by the profiler: as many multiplications as the formulas have."""
    case = make_case(TINY, device=CPU, seed=0)
    work = len(case.input_rows) * 4 * 8 * (8 + 8)  # N rows, 4H columns, E and H to sum over
    for what, times in ((FORWARD, 1), (BACKWARD, 2), (BOTH, 3)):
        with torch.profiler.profile(with_flops=True) as taken:
            lstm_implementations.gemms(case)[what]()
        assert sum(event.flops or 0 for event in taken.events()) == 2 * work * times


def test_shares_and_rates() -> None:
    taken = {GEMMS: Spread((2.0, 4.0)), BASELINE: Spread((4.0, 8.0))}
    result = SuiteResult()
    lstm.add_times(result, BOTH, taken, 16, {})
    (share,) = [one for one in result.figures if one.what.endswith("share of the roofline")]
    assert share.implementation == BASELINE and share.spread.values == (0.5, 0.5)
    (rate,) = [one for one in result.figures if one.unit == "tokens/s"]
    assert rate.spread.values == (4.0, 2.0)
    assert {one.implementation for one in result.figures if one.unit == "ms"} == set(taken)


def test_backward_alone_gets_a_forward_of_its_own_each_time() -> None:
    made: list[int] = []
    backward = Prepared(lambda: made.append(len(made)) or len(made), lambda count: count)  # type: ignore[func-returns-value]
    taken = interleaved({"a": backward}, repeats=3, device=CPU, warmup=2)
    assert len(made) == 5 and len(taken["a"].values) == 3


# -- memory -------------------------------------------------------------------------------------


def test_peak_counts_what_is_held_at_once() -> None:
    def call() -> torch.Tensor:
        for _ in range(3):
            torch.empty(1_000_000, dtype=torch.uint8)  # released at once
        kept = torch.empty(2_000_000, dtype=torch.uint8)
        return torch.empty(500_000, dtype=torch.uint8) if len(kept) else kept

    assert peak_allocated(call, CPU) == 2_500_000


def test_peak_sees_what_autograd_saves() -> None:
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    plain = peak_allocated(lambda: x.detach().exp().exp(), CPU)
    saved = peak_allocated(lambda: x.exp().exp(), CPU)
    assert (plain, saved) == (16_000, 16_000)
    assert peak_allocated(lambda: x.detach().exp().exp().exp(), CPU) == 16_000
    assert peak_allocated(lambda: x.exp().exp().exp(), CPU) == 24_000


# -- precision ----------------------------------------------------------------------------------


def test_tf32_is_off_while_measuring_and_as_before_afterwards() -> None:
    before = torch.backends.cudnn.rnn.fp32_precision
    for tf32, precision in ((False, "ieee"), (True, "tf32")):
        with float32_products(tf32=tf32):
            assert torch.backends.cudnn.rnn.fp32_precision == precision
            assert torch.backends.cuda.matmul.fp32_precision == precision
    assert torch.backends.cudnn.rnn.fp32_precision == before


# -- the image and the script -------------------------------------------------------------------


def test_the_image_has_a_panel_a_hidden_size(stand_in: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    record = run(hidden_sizes=[4, 8])
    plots.plot_lstm(record, tmp_path / "lstm.png")
    assert (tmp_path / "lstm.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["lstm.png"]
    record["figures"] = [one for one in record["figures"] if one["implementation"] == BASELINE]
    with pytest.raises(ConfigError, match="only torch was measured"):
        plots.plot_lstm(record, tmp_path / "none.png")


def test_without_matplotlib_nothing_is_measured_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    config = BenchmarkConfig(suite="lstm", device="cpu", plot="lstm.png")
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        run_benchmark(config)


def test_script_prints_the_tables_and_writes_the_record(tmp_path: Path, run_script: Any) -> None:
    out = tmp_path / "lstm.json"
    done = run_script(
        tmp_path,
        "benchmark",
        "suite=lstm",
        "repeats=1",
        "lstm.batch_sizes=[2]",
        "lstm.hidden_sizes=[4]",
        "lstm.backends=[reference]",
        "threads=1",
        "device=cpu",
        f"out={out}",
    )
    assert done.returncode == 0, done.stderr
    assert "required" in done.stdout and "reference" in done.stdout
    record = json.loads(out.read_text())
    assert "suite=lstm" in record["command"]
    assert {one["implementation"] for one in record["figures"]} == {BASELINE, "reference", GEMMS}
    assert [path.name for path in tmp_path.iterdir()] == ["lstm.json"]
