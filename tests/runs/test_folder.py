"""A run is resumed only with its own settings; those that came later have defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.files import atomic_folder, atomic_write, remove_unfinished, write_json
from captioner.runs.folder import CONFIG, LATER, FolderTaken, check_same_run
from captioner.runs.outcome import sole_trainer

ENCODER = {"reader": "auto", "cache_dtype": "float32", "views": ["original"]}
NOW = {"seed": 1, "trainer": {"graph": "auto", "epochs": 3}, "encoder": ENCODER}


def test_a_run_that_began_without_later_settings_goes_on(tmp_path: Path) -> None:
    write_json(tmp_path / CONFIG, {"seed": 1, "trainer": {"epochs": 3}, "encoder": {}})
    check_same_run(tmp_path, NOW)
    for group, key, value in (("trainer", "graph", "on"), ("encoder", "reader", "torchvision")):
        changed = {**NOW, group: {**NOW[group], key: value}}  # type: ignore[dict-item]
        with pytest.raises(FolderTaken, match=f"{group}.{key} was 'auto', now '{value}'"):
            check_same_run(tmp_path, changed)


def test_every_later_setting_is_one_that_there_is() -> None:
    from captioner import config

    known = config.known_keys(config.TrainConfig)
    assert set(LATER) <= set(known)


def test_a_setting_that_was_always_there_may_not_be_missing(tmp_path: Path) -> None:
    write_json(tmp_path / CONFIG, {"trainer": {"epochs": 3}})
    with pytest.raises(FolderTaken, match="seed was None, now 1"):
        check_same_run(tmp_path, NOW)


def test_a_run_of_version_0_1_goes_on_under_todays_names(tmp_path: Path) -> None:
    before = {"decoder": {"hidden_size": 8, "backend": "clusters"}, "decode": {"beam_size": 3}}
    write_json(tmp_path / CONFIG, {**NOW, **before})
    now = {"model": {"hidden_size": 8, "backend": "cluster"}, "generation": {"beam_size": 3}}
    check_same_run(tmp_path, {**NOW, **now})
    with pytest.raises(
        FolderTaken, match=r"with other settings: generation.beam_size was 3, now 5$"
    ):
        check_same_run(tmp_path, {**NOW, **now, "generation": {"beam_size": 5}})


def test_what_a_killed_process_left_half_written_goes_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "5")  # of nothing: without WORLD_SIZE there is one process
    (tmp_path / "replica_0").mkdir()
    left = [".last.pt.abcd1234", ".history.json.x_y9z012", "replica_0/.epoch_3.pt.12345678"]
    kept = ["last.pt", ".notes.settings", ".last.pt.swp", ".last.pt.folder_1/inside"]
    (tmp_path / ".last.pt.folder_1").mkdir()
    for name in (*left, *kept):
        (tmp_path / name).touch()
    with sole_trainer(tmp_path):
        assert [name for name in left if (tmp_path / name).exists()] == []
        assert all((tmp_path / name).exists() for name in kept)


def test_what_atomic_write_leaves_is_known_for_what_it_is(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "last.pt") as handle:
        (temporary,) = tmp_path.iterdir()
        handle.write(b"new")
        remove_unfinished(tmp_path, "*.pt")  # this process lives, and is writing it
        assert temporary.exists()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]
    temporary.touch()  # a process that was killed has left it
    remove_unfinished(tmp_path, "best.pt")
    assert temporary.exists()
    with atomic_write(tmp_path / "last.pt"):
        pass
    assert not temporary.exists()


def test_what_atomic_folder_leaves_goes_with_the_next_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as made:
        (made / "a").touch()
        (tmp_path / ".model.abcd1234.old").mkdir()
        (tmp_path / ".model.abcd1234").mkdir()
        (tmp_path / ".model.abcd1234" / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["a"]
