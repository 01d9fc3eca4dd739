"""Serving the demo without other files and other hosts."""

import contextlib
import logging
import re
from collections.abc import Iterator

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.demo.requests import BoundedRequests
from captioner.errors import ConfigError
from captioner.evaluation.attention import attention_script, attention_style
from captioner.evaluation.html import resource

WAITING = 32  # visitors in the queue; the next is told to come back
# Of the browser's requests; Gradio's own pages need inline scripts and blobs.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
# Requests for which Gradio would fetch a file of another host.
_ELSEWHERE = re.compile(r"/(file=|file/|proxy=)\s*[a-z]+:", re.IGNORECASE)


class SameHost:
    """Refuses to fetch from other hosts, and forbids it to the browser."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the policy in its answer, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if _ELSEWHERE.search(scope["path"]):
            refusal = PlainTextResponse("this demo fetches nothing from other hosts", 403)
            return await refusal(scope, receive, send)

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]
            await send(message)

        await self.app(scope, receive, with_policy)


@contextlib.contextmanager
def serve(demo: gr.Blocks, *, host: str, port: int | None, max_mb: float) -> Iterator[str]:
    """Serve a demo on host:port (None: the first free port from 7860) while the context is open.

    Uploads above `max_mb` are refused before they arrive. ConfigError when the port is taken.
    """
    most = round(max_mb * 2**20)
    middleware = [Middleware(SameHost), Middleware(BoundedRequests, most=most)]
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio calls its own server first
    demo.queue(default_concurrency_limit=1, max_size=WAITING, api_open=False)
    # Fonts of the system: Gradio's themes would load others.
    fonts = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = gr.themes.Default(primary_hue="blue", font=fonts[0], font_mono=fonts[1])
    try:
        _, address, _ = demo.launch(
            server_name=host,
            server_port=port,
            max_file_size=most,
            share=False,
            show_error=False,
            allowed_paths=[],
            strict_cors=True,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=["settings"],
            theme=theme,
            css=attention_style() + resource(__package__, "demo.css"),
            head=f"<script>{attention_script()}</script>",
            app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None},
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise ConfigError(
            f"port {port or 'from 7860 on'} of {host} is not available, take another with port=: "
            f"{error}"
        ) from error
    try:
        yield str(address)
    finally:
        demo.close(verbose=False)
