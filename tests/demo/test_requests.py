"""A request that does not come to its end, or says that it will be huge, is answered soon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra [page] is not installed")

from captioner.demo import requests


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the whole of a request, and then answers."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


def answer(messages: list[dict[str, Any]], application: Any = reading, **headers: str) -> Any:
    """The status and the text that answer a request whose messages are these, and no more."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else await asyncio.sleep(60) or {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": raw}
    asyncio.run(requests.BoundedRequests(application, most=1000)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


def body(content: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_request_that_stops_coming_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.05)
    found = answer([body(b"a", more=True)])
    assert found == (408, "the request did not come to its end within 0.05 seconds")
    assert answer([body(b"a", more=True), body(b"b", more=False)]) == (200, "fine")


def test_a_request_that_would_be_too_long_is_not_read() -> None:
    status, said = answer([], **{"content-length": "99999999"})
    assert status == 413 and "at most 66,536 bytes, this one has 99,999,999" in said
    assert answer([], **{"transfer-encoding": "chunked"})[0] == 411


def test_what_an_application_raises_becomes_a_sentence() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("no\nsuch")

    assert answer([], broken) == (400, "this request cannot be answered: 'no\\nsuch'")
