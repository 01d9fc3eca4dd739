"""Files are read strictly, with the place of what is wrong; what is written can be read back."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioner.data.download import download
from captioner.errors import DataError
from captioner.evaluation.leakage import find_leakage
from captioner.features.device_images import read_images
from captioner.files import (
    atomic_write,
    file_digest,
    parse_json,
    read_json,
    read_text,
    take_lock,
    write_json,
    write_json_rows,
)
from captioner.runs.name import register_resolver
from captioner.runs.outcome import is_training, sole_trainer

DEEP = 100_000
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": [\n1,\n}', "line 3: not JSON: .* at column 1"),
        (b'{"a": 1,\n "b": "\xff"}', "line 2: found the byte 0xff, which is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "line 1: found the byte 0xff, which is not UTF-8"),
        (b'\xef\xbb\xbf[\n"\xe9"]', "line 2: found the byte 0xe9"),
        (b"[" * DEEP + b"]" * DEEP, "line 1: lists and objects are nested more than 200 deep"),
        (b'{"a":\n' * DEEP + b"1" + b"}" * DEEP, "line 201: .* nested more than 200 deep"),
        (b"[1,\n" + b"7" * 5000 + b"]", "line 2: a number of 5000 digits; at most 4300 can be"),
        (b'{"a": "NaN",\n"b": [1, NaN]}', "line 2: NaN is no number of JSON; expected a finite"),
        (b"[\n\n-Infinity]", "line 3: -Infinity is no number of JSON"),
        (b'[{"a": 1},\n{"b": 1,\n"\\u0062": 2}]', "line 3: the key 'b' stands there twice"),
        (b'["\\ud83d\\ude00",\n"\\ud83d"]', r"line 2: \\ud83d is half of a surrogate pair"),
        (b'{"\\uDE00": 1}', r"line 1: \\uDE00 is half of a surrogate pair, expected characters"),
        (b'["\\\\\\ud800"]', r"line 1: \\ud800 is half"),
        (b"", "line 1: not JSON: Expecting value at column 1"),
    ],
)
def test_what_is_no_json_is_named_with_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/x\.json, {message}"):
        read_json(tmp_path / "x.json")


def test_what_is_json_is_read(tmp_path: Path) -> None:
    value = {"é": ["\U0001f600", "\\ud800", 'a"b\\', 12345678901234567890, 1e-300], "": {"a": {}}}
    for ascii_only in (True, False):
        for mark in ("", "\ufeff"):
            text = mark + json.dumps(value, ensure_ascii=ascii_only)
            (tmp_path / "x.json").write_text(text, encoding="utf-8")
            assert read_json(tmp_path / "x.json") == value


def test_a_line_of_a_longer_text_is_counted_from_its_own() -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl, line 8: not JSON"):
        parse_json('{"a":\n', "rows.jsonl", line=7)
    with pytest.raises(DataError, match=r"^rows\.jsonl, line 8: NaN"):
        parse_json('{"a":\nNaN}', "rows.jsonl", line=7)


def test_names_that_are_no_utf8_are_written_and_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "x.json", {"file": name})
    assert read_json(tmp_path / "x.json", file_names=True) == {"file": name}
    with pytest.raises(DataError, match=r"\\udce9 is half of a surrogate pair"):
        read_json(tmp_path / "x.json")
    (tmp_path / "y.json").write_text('["\\ud800"]')
    with pytest.raises(DataError, match=r"\\ud800 is half of a surrogate pair"):
        read_json(tmp_path / "y.json", file_names=True)
    with atomic_write(tmp_path / "page.html", "w") as page:
        page.write(f"<p>{name}")
    assert read_text(tmp_path / "page.html") == "<p>caf\\udce9.jpg"


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    value: Any = {"a": [1.5, float("nan"), {"b": (float("inf"), 2)}]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == {"a": [1.5, None, {"b": [None, 2]}]}


def test_pipes_sockets_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(".", os.O_RDONLY)
        os.chdir(tmp_path)  # a socket's address is short
        try:
            server.bind("socket.json")
        finally:
            os.fchdir(here)
            os.close(here)
    expected = {
        tmp_path / "pipe.json": "is a named pipe, expected a file",
        tmp_path / "socket.json": "is a socket, expected a file",
        Path("/dev/zero"): "is a device, expected a file",
        tmp_path: "cannot read .*: Is a directory",
        tmp_path / "none.json": "cannot read .*: No such file",
    }
    for path, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_json(path)
    with pytest.raises(DataError, match="is a named pipe"):
        file_digest(tmp_path / "pipe.json")


def test_nothing_else_waits_for_a_pipe_or_replaces_it(tmp_path: Path) -> None:
    register_resolver()
    pipe = tmp_path / "lock"
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "a.zip.part")
    uses: dict[str, Callable[[], object]] = {
        "a lock": lambda: take_lock(pipe, wait=True),
        "a run's lock": lambda: sole_trainer(tmp_path).__enter__(),
        "another run's lock": lambda: is_training(tmp_path),
        "a run's log": lambda: OmegaConf.create({"a": f"${{log_file:{pipe}}}"}).a,
        "a download": lambda: download("http://elsewhere/a.zip", tmp_path / "a.zip"),
        "a download that is there": lambda: download("http://elsewhere/a.zip", pipe),
        "an output": lambda: atomic_write(pipe).__enter__(),
        "a device as an output": lambda: atomic_write("/dev/null").__enter__(),
        "whatever stdout is as an output": lambda: atomic_write("/dev/stdout").__enter__(),
        "an image of two splits": lambda: find_leakage([pipe], []),
        "an image for a GPU": lambda: read_images([pipe], CPU, ThreadPoolExecutor(1)),
    }
    for name, use in uses.items():
        with pytest.raises(
            (DataError, OmegaConfBaseException), match=r"(named pipe|device), expected a file"
        ):
            use()
            pytest.fail(name)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_lock_is_waited_for_or_not(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("mine")
    child = os.fork()
    if child == 0:
        with take_lock(tmp_path / "lock", wait=False):
            (tmp_path / "held").touch()
            time.sleep(0.3)
            os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    with pytest.raises(BlockingIOError):
        take_lock(tmp_path / "lock", wait=False)
    began = time.monotonic()
    take_lock(tmp_path / "lock", wait=True).close()
    assert time.monotonic() - began > 0.05 and os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "lock").read_text() == "mine"


def test_rows_are_written_a_line_each_and_read_back(tmp_path: Path) -> None:
    value = {
        "name": "a\nb",
        "images": [{"id": 1, "é": [0.25, None]}, "x"],
        "tables": {"none": [], "one": [[1, 2], [3, 4]]},
        "empty": {},
    }
    write_json_rows(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text("utf-8")
    assert read_json(tmp_path / "x.json") == value
    assert '{"id": 1, "é": [0.25, null]},\n"x"\n]' in text
    assert "[1, 2],\n[3, 4]\n]" in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_rows(tmp_path / "x.json", [float("nan")])
    assert (tmp_path / "x.json").read_text("utf-8") == text  # what stood there still does
