"""A text while it is generated, as an iterator that can be closed."""

import contextlib
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from captioner.inference.text import TextGenerator


class _Stopped(Exception):
    """The reader has closed the iterator."""


def stream_text(
    generator: TextGenerator, prompt: str, **settings: Any
) -> Generator[str, None, None]:
    """What is written after `prompt`, piece by piece; closing the iterator ends the writing.

    `settings` and errors are those of `TextGenerator.samples`, for one text. A piece holds all that
    was written since the last one was taken, so a slow reader gets fewer and longer ones.
    """
    pieces: SimpleQueue[str | None] = SimpleQueue()
    closed = threading.Event()

    def listen(_number: int, text: str) -> None:
        if closed.is_set():
            raise _Stopped
        pieces.put(text)

    def write() -> None:
        try:
            with contextlib.suppress(_Stopped):
                listened = TextGenerator(generator.model, generator.codec, listener=listen)
                listened.samples(prompt, **settings)
        finally:
            pieces.put(None)

    # The sampler runs on while its text is shown: hence a thread, which ends with the iterator.
    with ThreadPoolExecutor(max_workers=1) as pool:
        writing = pool.submit(write)
        try:
            while (piece := pieces.get()) is not None:
                yield piece + _waiting(pieces)
            writing.result()
        finally:
            closed.set()


def _waiting(pieces: SimpleQueue[str | None]) -> str:
    """All that lies in the queue now; its end is put back."""
    text = ""
    while not pieces.empty():
        piece = pieces.get()
        if piece is None:
            pieces.put(None)
            break
        text += piece
    return text
