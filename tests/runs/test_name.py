"""Names of run folders: short, and never the same for two runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from captioner.runs.name import run_name, suffix, values_of


def test_a_name_says_what_differs() -> None:
    assert run_name(values_of(["optimizer.lr=1e-3", "model.hidden_size=256"])) == (
        "hidden_size=256,lr=0.001"
    )
    assert run_name(values_of(["optimizer.lr=1e-3", "encoder.lr=null"])) == (
        "encoder.lr=null,optimizer.lr=0.001"
    )
    assert run_name({}) == "run"


def test_a_sweep_of_version_0_1_finds_its_folders() -> None:
    """They were in the order of the old keys: decoder before encoder, decode before optimizer."""
    swept = ["encoder.lr=0.1", "model.hidden_size=8", "generation.beam_size=3", "data.seed=1"]
    assert run_name(values_of(swept)) == "seed=1,beam_size=3,hidden_size=8,lr=0.1"


def test_the_same_settings_have_the_same_name() -> None:
    one = ["optimizer.lr=0.001", "data.split=true"]
    assert run_name(values_of(one)) == run_name(values_of(["data.split=True", "optimizer.lr=1e-3"]))


@given(st.lists(st.text(max_size=40), min_size=2, max_size=5, unique=True))
def test_any_value_makes_a_safe_and_own_name(values: list[str]) -> None:
    names = [run_name({"data.path": value, "optimizer.lr": "0.1"}) for value in values]
    assert len(set(names)) == len(values)
    for name in names:
        assert not set(name) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-=,~"
        )
        assert len(name.encode()) < 120 and "/" not in name


def test_a_single_runs_folder_leaves_paths_out() -> None:
    assert suffix(["experiment=scenes", "data.root=/a/b", "run_dir=x"]) == ""
    assert suffix(["experiment=scenes", "optimizer.lr=0.01", "device=cpu"]) == "_lr=0.01"
