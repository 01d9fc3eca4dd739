from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from captioner.errors import CheckpointError
from captioner.models.weights import (
    load_weights,
    read_state_dict,
    rename_densenet,
    rename_efficientnet_lite,
)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_reads_pth(tmp_path: Path, wrapper: str | None) -> None:
    state = {"module.weight": torch.randn(2, 3)}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "w.pth")
    read = read_state_dict(tmp_path / "w.pth")
    assert list(read) == ["weight"] and torch.equal(read["weight"], state["module.weight"])


def test_reads_the_old_pth_format(tmp_path: Path) -> None:
    state = {"weight": torch.randn(2, 3)}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["weight"], state["weight"])


def test_reads_safetensors(tmp_path: Path) -> None:
    state = {"weight": torch.randn(2, 3)}
    save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["weight"], state["weight"])


@pytest.mark.parametrize("zipped", [True, False])
def test_never_runs_code(tmp_path: Path, zipped: bool) -> None:
    ran = tmp_path / "ran"
    torch.save({"w": Bomb(ran)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code"):
        read_state_dict(tmp_path / "w.pth")
    assert not ran.exists()


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="state_dict"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 200])
def test_damaged_files(tmp_path: Path, suffix: str, kept: int) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"w{suffix}"
    state = {"weight": torch.randn(20, 30)}
    if suffix == ".pth":
        torch.save(state, whole)
    else:
        save_file(state, whole)
    path.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=path.name):
        read_state_dict(path)


def test_missing_file_and_wrong_content(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file"):
        read_state_dict(tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="found list"):
        read_state_dict(tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pth")
    with pytest.raises(CheckpointError, match="lr must be a tensor, found float"):
        read_state_dict(tmp_path / "numbers.pth")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5))


def test_load_is_strict_but_for_what_is_cut() -> None:
    target, state = network(), network().state_dict()
    with_head = {**state, "2.weight": torch.zeros(7, 4), "2.bias": torch.zeros(7)}
    load_weights(target, with_head, source="w.pth", ignore=("2",))
    assert torch.equal(target.state_dict()["0.weight"], state["0.weight"])
    without = {k: v for k, v in state.items() if not k.startswith("2.")}
    load_weights(target, without, source="w.pth", ignore=("2",))
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    load_weights(target, old, source="w.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, "lacks tensor 0.weight"),
        ({"3.weight": torch.zeros(1)}, "unknown tensor 3.weight"),
        ({"0.weight": torch.zeros(4, 3, 3, 3)}, r"0.weight is \[4, 3, 3, 3\], expected \[4, 3, 1"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, message: str) -> None:
    state = {k: v for k, v in {**network().state_dict(), **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        load_weights(network(), state, source="w.pth")


def test_densenet_names() -> None:
    given = ["features.denseblock1.denselayer12.norm.1.weight", "features.norm0.weight"]
    renamed = rename_densenet({name: torch.zeros(1) for name in given})
    assert list(renamed) == ["features.denseblock1.denselayer12.norm1.weight", given[1]]


def test_efficientnet_lite_names() -> None:
    given = {
        "_conv_stem.weight": "conv_stem.weight",
        "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.2._bn0.bias": "blocks.1.1.bn1.bias",
        "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
        "_bn1.weight": "bn2.weight",
        "_fc.bias": "classifier.bias",
    }
    state = {name: torch.zeros(1) for name in given}
    assert list(rename_efficientnet_lite(state, stage_lengths=[1, 2])) == list(given.values())
    for stranger in ("_blocks.3._bn0.bias", "_blocks.0._bn9.bias", "conv1.weight", "_blocks"):
        with pytest.raises(CheckpointError, match=stranger):
            rename_efficientnet_lite({stranger: torch.zeros(1)}, stage_lengths=[1, 2])
