"""Image files -> features, block by block.

On a CPU every thread encodes a block of its own with one intra-op thread: operations spread over
all cores would wait at each end for the core that decodes images. For a GPU, worker processes read
while it computes (`encoded_blocks`), or threads decode and resize on the GPU itself, a batch ahead
of the encoder (`encoded_ahead`).

Letters: B images of a block, R regions (1 when pooled), F image feature, S image side.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.data.images import load_image
from captioner.errors import ImageError
from captioner.features.device_images import read_images, transform_batch
from captioner.models.transforms import ImageTransform

# Images that a CPU thread encodes at once: more do not fit its cache, and their intermediate
# results are so large that malloc maps fresh pages for each of them.
_AT_ONCE = 2
_AHEAD = 2  # blocks that are prepared while one is encoded

ImageFiles = Sequence[tuple[str, Path]]  # name and file
Transform = Callable[[Image.Image], Tensor]
Encode = Callable[[Tensor], Tensor]
Encoded = Generator[tuple[range, np.ndarray], None, None]


def encoded_blocks(
    blocks: Sequence[range],
    images: ImageFiles,
    *,
    transform: Transform,
    encode: Encode,
    num_workers: int,
) -> Encoded:
    """Each block of rows of `images` with its features [B, R, F] in float32, in order.

    With `num_workers` = 0, `torch.get_num_threads()` threads read and encode a block each (`encode`
    is called by several at once); otherwise so many processes read, and `encode` runs here.
    Closing the generator stops the work. Raises ImageError naming an unreadable image after the
    blocks before it.
    """
    read = _ImageBlocks(blocks, images, transform)
    if num_workers == 0:
        return _in_threads(blocks, lambda rows: _features(encode, read.batch(rows)))
    return _beside_workers(read, encode, num_workers)


def encoded_ahead(
    blocks: Sequence[range],
    images: ImageFiles,
    *,
    transform: ImageTransform,
    encode: Encode,
    device: torch.device,
    threads: int,
) -> Encoded:
    """The same blocks, decoded, resized and normalised on `device`, the next while one is encoded.

    `threads` read files, and decode where the device does not. On CUDA a block is prepared on a
    stream of its own. Errors as in `encoded_blocks`.
    """
    side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    with ThreadPoolExecutor(max(1, threads)) as readers:

        @torch.inference_mode()
        def prepared(block: range) -> tuple[Tensor, torch.cuda.Event | None]:
            with torch.cuda.stream(side_stream):  # None changes nothing
                paths = [images[row][1] for row in block]
                batch = transform_batch(transform, read_images(paths, device, readers))
                return batch, None if side_stream is None else side_stream.record_event()

        with contextlib.closing(_ahead(blocks, prepared)) as waiting:
            for block, (batch, event) in zip(blocks, waiting, strict=True):
                if event is not None:
                    current = torch.cuda.current_stream(device)
                    current.wait_event(event)
                    batch.record_stream(current)  # its memory belongs to the other stream
                yield block, _features(encode, batch)


def _ahead(blocks: Sequence[range], prepared: Callable[[range], Any]) -> Generator[Any, None, None]:
    """`prepared` of each block in order, in a thread that is up to _AHEAD blocks further."""
    waiting = iter(blocks)
    with ThreadPoolExecutor(max_workers=1) as pool:
        begun: deque[Future[Any]] = deque()
        try:
            begun.extend(pool.submit(prepared, block) for block in islice(waiting, _AHEAD))
            while begun:
                found = begun.popleft().result()
                begun.extend(pool.submit(prepared, block) for block in islice(waiting, 1))
                yield found
        finally:
            pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def _features(encode: Encode, batch: Tensor) -> np.ndarray:
    values: np.ndarray = encode(batch).float().cpu().numpy()
    return values


class _ImageBlocks(Dataset[Tensor | ImageError]):
    """Blocks of images as tensors [B, 3, S, S]; an unreadable one is an error to be raised later,
    in the process that has to save the finished rows first."""

    def __init__(self, blocks: Sequence[range], images: ImageFiles, transform: Transform) -> None:
        self.blocks, self.images, self.transform = blocks, images, transform

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> Tensor | ImageError:
        try:
            return self.batch(self.blocks[number])
        except ImageError as error:
            return error

    def batch(self, rows: range) -> Tensor:
        """[B, 3, S, S], channels-last; ImageError names an image that cannot be read."""
        images = [self.transform(load_image(self.images[row][1])) for row in rows]
        # Each is [3, S, S] over memory ordered [S, S, 3]: stacked so, no byte moves twice.
        return torch.stack([one.permute(1, 2, 0) for one in images]).permute(0, 3, 1, 2)


def _in_threads(blocks: Sequence[range], compute: Callable[[range], np.ndarray]) -> Encoded:
    threads = torch.get_num_threads()
    stopped = threading.Event()

    def in_pieces(block: range) -> np.ndarray:
        pieces = []
        for start in range(0, len(block), _AT_ONCE):
            if stopped.is_set():
                raise CancelledError
            pieces.append(compute(block[start : start + _AT_ONCE]))
        return np.concatenate(pieces)

    # set_num_threads holds for the thread that calls it, and for threads that begin afterwards.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting = iter(blocks)
        # One block more for each thread: it has something to do while a finished one is written.
        begun = deque(pool.submit(in_pieces, block) for block in islice(waiting, 2 * threads))
        for block in blocks:
            features = begun.popleft().result()
            begun.extend(pool.submit(in_pieces, later) for later in islice(waiting, 1))
            yield block, features
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _beside_workers(read: _ImageBlocks, encode: Encode, num_workers: int) -> Encoded:
    loader: DataLoader[Any] = DataLoader(read, batch_size=None, num_workers=num_workers)
    for block, batch in zip(read.blocks, loader, strict=True):
        if isinstance(batch, ImageError):
            raise batch
        yield block, _features(encode, batch)
