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

TABLE = {
    "A": {
        "bfloat16": [
            {"hidden_size": 256, "batch_size": 16, "plain_ms": 2.0, "persistent_ms": 1.0},
            {"hidden_size": 256, "batch_size": 256, "plain_ms": 2.0, "persistent_ms": 3.0},
            {"hidden_size": 1024, "batch_size": 256, "plain_ms": 9.0, "persistent_ms": 3.0},
        ]
    }
}


@pytest.mark.parametrize(
    ("hidden", "batch", "faster", "why"),
    [
        (256, 16, True, "plain 2 ms, persistent 1 ms"),
        (256, 60, True, "plain 2 ms, persistent 1 ms"),  # a logarithm nearer to 16 than to 256
        (256, 70, False, "plain 2 ms, persistent 3 ms"),
        (700, 200, True, "plain 9 ms"),
        (128, 16, False, "hidden_size 128 is beyond what was measured, 256 to 1024"),
        (256, 512, False, "batch_size 512 is beyond"),
    ],
)
def test_the_nearest_cell_decides(hidden: int, batch: int, faster: bool, why: str) -> None:
    found, words = paths.is_faster(TABLE, "A", torch.bfloat16, hidden, batch)
    assert found == faster and why in words


@pytest.mark.parametrize(("device", "dtype"), [("B", torch.bfloat16), ("A", torch.float16)])
def test_without_a_record_the_plain_way_is_taken(device: str, dtype: torch.dtype) -> None:
    faster, why = paths.is_faster(TABLE, device, dtype, 256, 16)
    assert not faster
    assert why == f"nothing was measured on {device} in {str(dtype).removeprefix('torch.')}"


@pytest.fixture
def invented_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of the name A that holds any weights: what is asked of it is asked of no GPU."""
    paths._say.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A")
    monkeypatch.setattr(paths, "_table", lambda: TABLE)
    fits = {"lstm_persistent_fits": lambda weight, batch: batch < 200}
    monkeypatch.setattr(torch.ops, "captioner", SimpleNamespace(**fits))


def go(chosen: str, batch: int = 16, dtype: Any = torch.bfloat16, capacity: bool = False) -> bool:
    weight = torch.empty(1024, 256, dtype=dtype)
    return paths.goes_persistent(chosen, weight, batch, capacity=capacity)


@pytest.mark.usefixtures("invented_gpu")
def test_names_force_and_the_table_decides_for_fused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="captioner"):
        assert go("fused") and go("fused")
    assert len(caplog.records) == 1 and "goes persistent (plain 2 ms" in caplog.text
    assert not go("fused", batch=250)
    assert go("persistent", batch=250)
    assert not go("plain")
    assert go("fused", batch=250, capacity=True)  # nothing else could
    assert not go("plain", capacity=True)  # which the operator refuses


@pytest.mark.usefixtures("invented_gpu")
def test_float32_follows_torchs_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_table", lambda: {"A": {"float32": TABLE["A"]["bfloat16"]}})
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert not go("fused", dtype=torch.float32)
        with pytest.raises(ConfigError, match="multiplies float32 as TF32, which"):
            go("persistent", dtype=torch.float32)
        torch.set_float32_matmul_precision("high")
        assert go("fused", dtype=torch.float32) and go("persistent", dtype=torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_table_that_is_installed_has_the_right_form() -> None:
    assert isinstance(paths._table(), dict)
    with pytest.raises(ConfigError, match=r"lstm_paths\.json, A, bfloat16: a cell must have"):
        paths.check_table({"A": {"bfloat16": [{"hidden_size": 3}]}})


@pytest.mark.parametrize("name", ["plain", "persistent"])
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
        torch.ops.captioner.lstm_packed(first, torch.tensor([2]), *rest, persistent=True)
