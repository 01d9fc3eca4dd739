"""What the environment says of other processes is looked at before they are waited for."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest

from captioner.errors import CaptionerError, ConfigError
from captioner.training import distributed
from captioner.training.launch import started_together

WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def set_environment(monkeypatch: pytest.MonkeyPatch, **given: str | None) -> None:
    for name, value in {**dict.fromkeys([*WHOLE, "LOCAL_RANK"]), **given}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, "but not RANK, MASTER_ADDR, MASTER_PORT: start several"),
        ({**WHOLE, "MASTER_ADDR": None}, "WORLD_SIZE=2 is set, but not MASTER_ADDR"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number from 1 to 2147483647, got 'two'"),
        ({"WORLD_SIZE": "-1"}, "got '-1'"),
        ({"WORLD_SIZE": "9" * 30}, "got '9"),
        ({**WHOLE, "RANK": "2"}, "RANK must be a number from 0 to 1, got '2'"),
        ({**WHOLE, "MASTER_PORT": "http"}, "MASTER_PORT must be a number from 1 to 65535"),
        ({**WHOLE, "LOCAL_RANK": "x"}, "LOCAL_RANK must be a number"),
    ],
)
def test_half_an_environment_is_refused(
    given: dict[str, str | None], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, **given)
    with pytest.raises(ConfigError) as error:
        started_together()
    assert sentence in str(error.value)


@pytest.mark.parametrize(("given", "size"), [({}, 1), ({"WORLD_SIZE": "1"}, 1), (WHOLE, 2)])
def test_a_whole_environment_is_taken(
    given: dict[str, str | None], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, **given)
    assert started_together() == size


def test_a_process_that_does_not_come_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    set_environment(monkeypatch, **{**WHOLE, "MASTER_PORT": port})
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=1))
    with (
        pytest.raises(CaptionerError, match=rf"2 processes .* did not meet at 127.0.0.1:{port}"),
        distributed.joined(),
    ):
        pass
