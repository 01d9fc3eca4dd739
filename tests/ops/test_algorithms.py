"""Which way through the steps: a measured table decides, and what cannot go is refused."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from captioner.errors import ConfigError
from captioner.ops import choose_backend, paths
from captioner.ops.extension import ABSENT


def cell(hidden: int, batch: int, **milliseconds: float) -> dict[str, Any]:
    return {"hidden_size": hidden, "batch_size": batch, "milliseconds": milliseconds}


TABLE = {
    "A": {
        "bfloat16": [
            cell(256, 16, plain=2.0, persistent=1.0, clusters=0.5),
            cell(256, 256, plain=2.0, persistent=3.0),
            cell(1024, 256, plain=9.0, persistent=3.0),
        ]
    }
}
PLAIN, PERSISTENT, CLUSTERS = range(3)


@pytest.mark.parametrize(
    ("hidden", "batch", "fastest", "why"),
    [
        (256, 16, "clusters", "plain 2 ms, persistent 1 ms, clusters 0.5 ms"),
        (256, 60, "clusters", "plain 2 ms, persistent 1 ms"),  # a logarithm nearer to 16 than 256
        (256, 70, "plain", "plain 2 ms, persistent 3 ms"),
        (700, 200, "persistent", "plain 9 ms"),
        (128, 16, None, "hidden_size 128 is beyond what was measured, 256 to 1024"),
        (256, 512, None, "batch_size 512 is beyond"),
    ],
)
def test_the_nearest_cell_decides(hidden: int, batch: int, fastest: str | None, why: str) -> None:
    times, words = paths.nearest(TABLE, "A", torch.bfloat16, hidden, batch)
    assert min(times, key=times.__getitem__, default=None) == fastest and why in words


@pytest.mark.parametrize(("device", "dtype"), [("B", torch.bfloat16), ("A", torch.float16)])
def test_without_a_record_nothing_is_concluded(device: str, dtype: torch.dtype) -> None:
    times, why = paths.nearest(TABLE, device, dtype, 256, 16)
    assert not times
    assert why == f"nothing was measured on {device} in {str(dtype).removeprefix('torch.')}"


@pytest.fixture
def invented_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of the name A, without clusters from 32 sequences on: no GPU is asked."""
    paths._say.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A")
    monkeypatch.setattr(paths, "_table", lambda: TABLE)
    fits = {"lstm_path_fits": lambda weight, batch, path: path < CLUSTERS or batch < 32}
    monkeypatch.setattr(torch.ops, "captioner", SimpleNamespace(**fits))


def go(
    chosen: str, batch: int = 16, dtype: Any = torch.bfloat16, capacity: bool = False, rows: int = 4
) -> int:
    return paths.choose_path(
        chosen, torch.empty(rows * 256, 256, dtype=dtype), batch, capacity=capacity
    )


@pytest.mark.usefixtures("invented_gpu")
def test_names_force_and_the_table_decides_for_fused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="captioner"):
        assert go("fused") == go("fused") == CLUSTERS
    assert len(caplog.records) == 1 and "LSTM on CUDA: clusters (measured nearby" in caplog.text
    assert go("fused", batch=40) == PERSISTENT  # what is faster does not fit
    assert go("fused", batch=250) == go("plain") == PLAIN
    assert go("persistent", batch=250) == PERSISTENT
    assert go("clusters", batch=250) == CLUSTERS  # which the operator refuses
    assert go("fused", batch=250, capacity=True) == PERSISTENT
    assert go("plain", capacity=True) == PLAIN  # likewise


@pytest.mark.usefixtures("invented_gpu")
def test_float32_follows_torchs_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_table", lambda: {"A": {"float32": TABLE["A"]["bfloat16"]}})
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert go("fused", dtype=torch.float32) == PLAIN
        for name in ("persistent", "clusters"):
            with pytest.raises(ConfigError, match="multiplies float32 as TF32, which"):
                go(name, dtype=torch.float32)
        torch.set_float32_matmul_precision("high")
        assert go("fused", dtype=torch.float32) == CLUSTERS
        assert go("persistent", dtype=torch.float32) == PERSISTENT
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_table_that_is_installed_has_the_right_form() -> None:
    assert isinstance(paths._table(), dict)
    with pytest.raises(ConfigError, match=r"lstm_paths\.json, A, bfloat16: a cell must have"):
        paths.check_table({"A": {"bfloat16": [{"hidden_size": 3}]}})


@pytest.mark.parametrize("name", paths.PATHS)
def test_ways_of_cuda_are_refused_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is for CUDA devices, this one is cpu"):
        choose_backend(name, "cpu")
    monkeypatch.setenv("CAPTIONER_LSTM", name)
    with pytest.raises(ConfigError, match=f"'{name}' is for CUDA devices"):
        choose_backend("auto", "cpu")


@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
def test_the_cpus_operator_refuses_to_go_persistent() -> None:
    x = {
        "input": (2, 3), "hx": (2, 4), "cx": (2, 4), "weight_ih": (16, 3), "weight_hh": (16, 4),
        "bias_ih": (16,), "bias_hh": (16,),
    }  # fmt: skip
    first, *rest = (torch.zeros(shape) for shape in x.values())
    with pytest.raises(RuntimeError, match="the persistent LSTM is for tensors on a CUDA device"):
        torch.ops.captioner.lstm_packed(first, torch.tensor([2]), *rest, path=1)
