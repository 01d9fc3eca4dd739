"""What the demo's server is asked: whatever it is, the answer is one sentence, and comes soon.

Gradio's own page sends nothing that would need this; other programs can.
"""

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)
BODY_SECONDS = 120.0  # in which a request must have come
_FRAME = 2**16  # bytes of a request beside its upload, or its settings and its prompt


class BoundedRequests:
    """Refuses a request that is longer than an upload of `most` bytes, does not say how long it is,
    does not come to its end or cannot be understood."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self.app, self.most = app, most + _FRAME

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer what is raised."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check_length(Headers(scope=scope))
            await self.app(scope, _within_time(receive), noted)
        except ClientDisconnect:
            pass  # the reader has gone; there is none to answer
        except Exception as error:  # of many kinds
            status, said = 400, in_a_sentence(error)
            if isinstance(error, HTTPException):
                status, said = error.status_code, error.detail
            log.warning("%s %s: %s", scope["method"], scope["path"][:200], said)
            if not begun:
                await PlainTextResponse(said, status)(scope, receive, send)

    def _check_length(self, headers: Headers) -> None:
        if "transfer-encoding" in headers:
            raise HTTPException(411, "a request must say how long it is (Content-Length)")
        length = int(headers.get("content-length", 0))  # the server has seen that it is a number
        if length > self.most:
            raise HTTPException(
                413, f"a request may have at most {self.most:,} bytes, this one has {length:,}"
            )


def _within_time(receive: Receive) -> Receive:
    """The same, but a body must have come before BODY_SECONDS are over."""
    loop = asyncio.get_running_loop()
    end, whole = loop.time() + BODY_SECONDS, False

    async def limited() -> Message:
        nonlocal whole
        if whole:  # what may follow is that the visitor leaves
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), end - loop.time())
        except asyncio.TimeoutError as error:
            raise HTTPException(
                408, f"the request did not come to its end within {BODY_SECONDS:g} seconds"
            ) from error
        whole = not message.get("more_body", False)
        return message

    return limited


def in_a_sentence(error: Exception) -> str:
    """What a visitor is told of an unexpected error; of pydantic's without the input that it
    repeats."""
    reason = " ".join(str(error).split(" [type=")[0].split())[:300]
    return f"this request cannot be answered: {reason or type(error).__name__}"
