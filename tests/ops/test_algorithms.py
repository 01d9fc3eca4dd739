"""The choice of the algorithm: by a measured table; what cannot run is refused."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from captioner.errors import ConfigError
from captioner.ops import algorithms, choose_backend
from captioner.ops.algorithms import Algorithm
from captioner.ops.extension import ABSENT


def cell(hidden: int, batch: int, **milliseconds: float) -> dict[str, Any]:
    return {"hidden_size": hidden, "batch_size": batch, "milliseconds": milliseconds}


TABLE = {
    "A": {
        "bfloat16": [
            cell(256, 16, plain=2.0, persistent=1.0, cluster=0.5),
            cell(256, 256, plain=2.0, persistent=3.0),
            cell(1024, 256, plain=9.0, persistent=3.0),
        ]
    }
}
PLAIN, PERSISTENT, CLUSTER = Algorithm


@pytest.mark.parametrize(
    ("hidden", "batch", "fastest", "why"),
    [
        (256, 16, "cluster", "plain 2 ms, persistent 1 ms, cluster 0.5 ms"),
        (256, 60, "cluster", "plain 2 ms, persistent 1 ms"),  # a logarithm nearer to 16 than 256
        (256, 70, "plain", "plain 2 ms, persistent 3 ms"),
        (700, 200, "persistent", "plain 9 ms"),
        (128, 16, None, "hidden_size 128 is beyond what was measured, 256 to 1024"),
        (256, 512, None, "batch_size 512 is beyond"),
    ],
)
def test_the_nearest_cell_decides(hidden: int, batch: int, fastest: str | None, why: str) -> None:
    times, words = algorithms.nearest(TABLE, "A", torch.bfloat16, hidden, batch)
    assert min(times, key=times.__getitem__, default=None) == fastest and why in words


@pytest.mark.parametrize(("device", "dtype"), [("B", torch.bfloat16), ("A", torch.float16)])
def test_without_a_record_nothing_is_concluded(device: str, dtype: torch.dtype) -> None:
    times, why = algorithms.nearest(TABLE, device, dtype, 256, 16)
    assert not times
    assert why == f"nothing was measured on {device} in {str(dtype).removeprefix('torch.')}"


@pytest.fixture
def invented_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of the name A, without clusters from 32 sequences on: no GPU is asked."""
    algorithms._log_choice.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A")
    monkeypatch.setattr(algorithms, "_table", lambda: TABLE)
    fits = {
        "lstm_algorithm_fits": lambda weight, batch, algorithm: algorithm < CLUSTER or batch < 32
    }
    monkeypatch.setattr(torch.ops, "captioner", SimpleNamespace(**fits))


def choose(
    chosen: str, batch: int = 16, dtype: Any = torch.bfloat16, capacity: bool = False, rows: int = 4
) -> Algorithm:
    return algorithms.choose_algorithm(
        chosen, torch.empty(rows * 256, 256, dtype=dtype), batch, capacity=capacity
    )


@pytest.mark.usefixtures("invented_gpu")
def test_names_force_and_the_table_decides_for_fused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="captioner"):
        assert choose("fused") == choose("fused") == CLUSTER
    assert len(caplog.records) == 1 and "LSTM on CUDA: cluster (measured nearby" in caplog.text
    assert choose("fused", batch=40) == PERSISTENT  # the faster one does not fit
    assert choose("fused", batch=250) == choose("plain") == PLAIN
    assert choose("persistent", batch=250) == PERSISTENT
    assert choose("cluster", batch=250) == CLUSTER  # which the operator refuses
    assert choose("fused", batch=250, capacity=True) == PERSISTENT
    assert choose("plain", capacity=True) == PLAIN  # likewise


@pytest.mark.usefixtures("invented_gpu")
def test_float32_follows_torchs_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithms, "_table", lambda: {"A": {"float32": TABLE["A"]["bfloat16"]}})
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert choose("fused", dtype=torch.float32) == PLAIN
        for name in ("persistent", "cluster"):
            with pytest.raises(ConfigError, match="multiplies float32 as TF32, which"):
                choose(name, dtype=torch.float32)
        torch.set_float32_matmul_precision("high")
        assert choose("fused", dtype=torch.float32) == CLUSTER
        assert choose("persistent", dtype=torch.float32) == PERSISTENT
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_table_that_is_installed_has_the_right_form() -> None:
    assert isinstance(algorithms._table(), dict)
    with pytest.raises(ConfigError, match=r"algorithms\.json, A, bfloat16: a cell must have"):
        algorithms.check_table({"A": {"bfloat16": [{"hidden_size": 3}]}})


@pytest.mark.parametrize("name", Algorithm.__members__)
def test_algorithms_of_cuda_are_refused_elsewhere(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is for CUDA devices, this one is cpu"):
        choose_backend(name, "cpu")
    monkeypatch.setenv("CAPTIONER_LSTM", name)
    with pytest.raises(ConfigError, match=f"'{name}' is for CUDA devices"):
        choose_backend("auto", "cpu")


def test_the_old_name_is_refused_by_one_that_names_the_new(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'clusters' is now called 'cluster'"):
        choose_backend("clusters", "cuda")
    monkeypatch.setenv("CAPTIONER_LSTM", "clusters")
    with pytest.raises(ConfigError, match="'clusters' is now called 'cluster'"):
        choose_backend("auto", "cpu")


def test_the_numbers_are_those_of_the_operator() -> None:
    header = Path(__file__).parents[2] / "csrc" / "cuda" / "algorithm.h"
    found = re.findall(r"^  (\w+) = (\d),", header.read_text(), re.M)
    assert {name: int(number) for name, number in found} == dict(Algorithm.__members__)


@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
def test_the_cpus_operator_refuses_persistent_algorithms() -> None:
    shapes = [(2, 3), (2, 4), (2, 4), (16, 3), (16, 4), (16,), (16,)]
    first, *rest = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(RuntimeError, match="the persistent LSTM is for tensors on a CUDA device"):
        torch.ops.captioner.lstm_packed(first, torch.tensor([2]), *rest, algorithm=1)
