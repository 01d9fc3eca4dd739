"""Pictures in files -> their features, block after block, with every core at work.

On a CPU each thread has a block of its own: it reads two pictures, encodes them with one intra-op
thread, and so on. Were each operation spread over all cores, then whatever reads pictures would
take one core away now and then, and all others would wait for it at the operation's end. For a GPU,
processes read while it computes; or threads decode and resize on the GPU itself, a batch ahead of
the encoder (`encoded_ahead`).

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
from captioner.data.transforms import ImageTransform
from captioner.errors import ImageError
from captioner.features.batch_transform import transform_batch
from captioner.features.jpeg import read_pictures

Transform = Callable[[Image.Image], Tensor]
Encode = Callable[[Tensor], Tensor]
# Pictures that a CPU's thread encodes at once. Of more, the intermediate results are too large for
# its cache, and so large that the system hands out fresh pages for each of them.
_AT_ONCE = 2

_AHEAD = 2  # blocks that are made ready while one is encoded

Images = Sequence[tuple[str, Path]]  # name and file
Encoded = Generator[tuple[range, np.ndarray], None, None]


def encoded_blocks(
    blocks: Sequence[range],
    images: Images,
    *,
    transform: Transform,
    encode: Encode,
    num_workers: int,
) -> Encoded:
    """Each block of rows of `images` with its features [B, R, F] in float32, in the blocks' order.

    With `num_workers` = 0, `torch.get_num_threads()` threads read and encode a block each, so that
    `encode` must bear being called by several at once; otherwise so many processes read, and
    `encode` runs here. Closing the generator ends all work after the next pictures. Raises
    ImageError naming an unreadable picture after the blocks before it.
    """
    load = _Load(images, transform)
    if num_workers == 0:
        return _in_threads(blocks, lambda rows: _features(encode, load(rows)))
    return _beside_workers(blocks, load, encode, num_workers)


def encoded_ahead(
    blocks: Sequence[range],
    images: Images,
    *,
    transform: ImageTransform,
    encode: Encode,
    device: torch.device,
    threads: int,
) -> Encoded:
    """The same blocks, decoded, resized and normalised on `device`, the next while one is encoded.

    `threads` read files, and decode where the device does not. On CUDA what makes a block ready has
    a stream of its own. Errors as in `encoded_blocks`.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    with ThreadPoolExecutor(max(1, threads)) as readers:

        @torch.inference_mode()
        def ready(block: range) -> tuple[Tensor, torch.cuda.Event | None]:
            with torch.cuda.stream(side):  # None leaves everything as it is
                paths = [images[row][1] for row in block]
                pictures = transform_batch(transform, read_pictures(paths, device, readers))
                return pictures, None if side is None else side.record_event()

        with contextlib.closing(_ahead(blocks, ready)) as waiting:
            for block, (pictures, event) in zip(blocks, waiting, strict=True):
                if event is not None:
                    here = torch.cuda.current_stream(device)
                    here.wait_event(event)
                    pictures.record_stream(here)  # its memory is the other stream's until then
                yield block, _features(encode, pictures)


def _ahead(blocks: Sequence[range], ready: Callable[[range], Any]) -> Generator[Any, None, None]:
    """`ready` of each block in order, in a thread that is up to _AHEAD blocks further."""
    waiting = iter(blocks)
    with ThreadPoolExecutor(max_workers=1) as pool:
        begun: deque[Future[Any]] = deque()
        try:
            begun.extend(pool.submit(ready, block) for block in islice(waiting, _AHEAD))
            while begun:
                found = begun.popleft().result()
                begun.extend(pool.submit(ready, block) for block in islice(waiting, 1))
                yield found
        finally:
            pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def _features(encode: Encode, pictures: Tensor) -> np.ndarray:
    values: np.ndarray = encode(pictures).float().cpu().numpy()
    return values


class _Load:
    """Reads a block of pictures; a class, because worker processes may have to be sent it."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __call__(self, block: range) -> Tensor:
        """A channels-last batch [B, 3, S, S]; ImageError names a picture that cannot be read."""
        pictures = [self.transform(load_image(self.images[row][1])) for row in block]
        # Pictures are [3, S, S] over pixels that lie as [S, S, 3]: stacked so, no byte moves twice.
        return torch.stack([one.permute(1, 2, 0) for one in pictures]).permute(0, 3, 1, 2)


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


def _beside_workers(
    blocks: Sequence[range],
    load: Callable[[range], Tensor],
    encode: Encode,
    num_workers: int,
) -> Encoded:
    loader: DataLoader[Any] = DataLoader(
        _Loaded(blocks, load), batch_size=None, num_workers=num_workers
    )
    for block, pictures in zip(blocks, loader, strict=True):
        if isinstance(pictures, ImageError):
            raise pictures
        yield block, _features(encode, pictures)


class _Loaded(Dataset[Tensor | ImageError]):
    """Blocks as tensors [B, 3, S, S]; one that cannot be read is an error to be raised later, in
    the process that has to save the finished rows first."""

    def __init__(self, blocks: Sequence[range], load: Callable[[range], Tensor]) -> None:
        self.blocks, self.load = blocks, load

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> Tensor | ImageError:
        try:
            return self.load(self.blocks[number])
        except ImageError as error:
            return error
