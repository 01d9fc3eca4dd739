"""Image files -> features, block by block.

On a CPU every thread encodes a block of its own with one intra-op thread: operations spread over
all cores would wait for the core that decodes images. For a GPU, worker processes read
(`encoded_blocks`), or threads decode and resize on the GPU, a batch ahead (`encoded_ahead`).

Letters: B images of a block, R regions (1 when pooled), F image feature, S image side.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
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

    With `num_workers` = 0, `torch.get_num_threads()` threads read and call `encode`; otherwise so
    many processes read, and `encode` runs here. ImageError names an unreadable image after the
    blocks before.
    """
    read = _ImageBlocks(blocks, images, transform)
    if num_workers == 0:
        yield from _in_threads(blocks, lambda rows: _features(encode, read.batch(rows)))
        return
    loader: DataLoader[Any] = DataLoader(read, batch_size=None, num_workers=num_workers)
    for block, batch in zip(blocks, loader, strict=True):
        if isinstance(batch, ImageError):
            raise batch
        yield block, _features(encode, batch)


def encoded_ahead(
    blocks: Sequence[range],
    images: ImageFiles,
    *,
    transform: ImageTransform,
    encode: Encode,
    device: torch.device,
    threads: int,
) -> Encoded:
    """The same blocks, decoded, resized and normalised on `device` (on CUDA in a stream of its
    own), the next while one is encoded; `threads` read files. Errors as in `encoded_blocks`."""
    from captioner.features.device_images import read_images, transform_batch

    side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.inference_mode()
    def prepared(block: range) -> tuple[Tensor, torch.cuda.Event | None]:
        with torch.cuda.stream(side_stream):  # None changes nothing
            paths = [images[row][1] for row in block]
            batch = transform_batch(transform, read_images(paths, device, readers))
            return batch, None if side_stream is None else side_stream.record_event()

    with ThreadPoolExecutor(max(1, threads)) as readers, ThreadPoolExecutor(1) as preparing:
        try:
            for block, (batch, event) in _in_order(preparing, prepared, blocks, ahead=_AHEAD):
                if event is not None:
                    current = torch.cuda.current_stream(device)
                    current.wait_event(event)
                    batch.record_stream(current)  # its memory belongs to the other stream
                yield block, _features(encode, batch)
        finally:
            preparing.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[range], Any], blocks: Sequence[range], *, ahead: int
) -> Iterator[tuple[range, Any]]:
    """Each block with its `work`, which `pool` does for up to `ahead` blocks in advance."""
    waiting = iter(blocks)
    begun = deque(pool.submit(work, block) for block in islice(waiting, ahead))
    for block in blocks:
        found = begun.popleft().result()
        begun.extend(pool.submit(work, later) for later in islice(waiting, 1))
        yield block, found


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
        # One block more for each thread: it has something to do while a finished one is written.
        yield from _in_order(pool, in_pieces, blocks, ahead=2 * threads)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
