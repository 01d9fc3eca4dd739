"""Captions paired with features or pictures, and the order in which they are visited.

Shapes: B captions in a batch, I pictures in a batch, R regions, F image feature, S picture side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.data.captions import CaptionedImage
from captioner.data.images import load_image
from captioner.data.packed import CaptionBatch, TokenStore
from captioner.data.tokenize import tokenize
from captioner.data.transforms import ImageTransform
from captioner.data.vocabulary import Vocabulary
from captioner.errors import DataError

# Image rows [I] -> features [I, R, F] or pictures [I, 3, S, S].
ImageSource = Callable[[Tensor], Tensor]
KEPT_BYTES = 1 << 28  # pictures that are kept in memory: 20,000 of 64 x 64, 1,700 of 224 x 224


class Pictures:
    """An ImageSource that reads the picture files when they are asked for.

    Where all of them, resized, take no more than `keep_bytes`, each is read once and kept as
    bytes: then `kept` says that later passes touch no file.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        transform: ImageTransform,
        *,
        keep_bytes: int = KEPT_BYTES,
    ) -> None:
        self.images, self.transform = images, transform
        shape = (len(images), transform.size, transform.size, 3)
        self.kept = math.prod(shape) <= keep_bytes
        # Untouched memory costs nothing yet.
        self._pixels = torch.empty(shape if self.kept else 0, dtype=torch.uint8)
        self._read = torch.zeros(len(images), dtype=torch.bool)

    def __call__(self, rows: Tensor) -> Tensor:
        """Pictures [I, 3, S, S]; ImageError names a file that cannot be read."""
        if not self.kept:
            return self.transform.normalise(torch.stack([self._load(row) for row in rows.tolist()]))
        for row in rows[~self._read[rows]].tolist():
            self._pixels[row] = self._load(row)
            self._read[row] = True
        return self.transform.normalise(self._pixels[rows])

    def _load(self, row: int) -> Tensor:
        return self.transform.pixels(load_image(self.images[row].path))


class CaptionDataset(Dataset[CaptionBatch]):
    """All captions of a split; indexed by a list of rows, it gives a packed batch.

    The rows number captions, or with `by_picture` pictures: then a batch holds all captions of its
    pictures, and a trained encoder computes each picture once instead of five times. Captions are
    cut at `max_length` words; those with no word left in the vocabulary are skipped (`skipped`
    counts them). `tokens_per_row` are what each row has to predict. Raises DataError when none is
    left.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        *,
        vocabulary: Vocabulary,
        source: ImageSource,
        max_length: int,
        by_picture: bool = False,
    ) -> None:
        encoded = [
            (row, vocabulary.encode(tokenize(caption))[:max_length])
            for row, image in enumerate(images)
            for caption in image.captions
        ]
        kept = [(row, ids) for row, ids in encoded if ids]
        if not kept:
            raise DataError(f"none of {len(encoded)} captions has a word of the vocabulary")
        self.skipped = len(encoded) - len(kept)
        self.image_rows = torch.tensor([row for row, _ in kept])
        self.store = TokenStore([ids for _, ids in kept], bos=vocabulary.bos, eos=vocabulary.eos)
        self.source = source
        self.by_picture = by_picture
        # Captions of one picture lie together: where each picture's begin, and how many they are.
        self._counts = torch.unique_consecutive(self.image_rows, return_counts=True)[1]
        self._starts = self._counts.cumsum(0) - self._counts
        lengths = self.store.lengths
        self.tokens_per_row = lengths
        if by_picture:
            pictures = torch.arange(len(self._counts)).repeat_interleave(self._counts)
            self.tokens_per_row = torch.zeros_like(self._counts).index_add_(0, pictures, lengths)

    def __len__(self) -> int:
        return len(self._counts) if self.by_picture else len(self.store)

    def __getitem__(self, rows: Sequence[int]) -> CaptionBatch:
        captions = torch.as_tensor(rows)
        if self.by_picture:
            captions = self._captions_of(captions)
        tokens, order = self.store.pack(captions)
        images, image_rows = self.image_rows[order].unique(return_inverse=True)
        return CaptionBatch(self.source(images), image_rows, tokens)

    def _captions_of(self, pictures: Tensor) -> Tensor:
        counts = self._counts[pictures]
        within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(
            counts
        )
        return self._starts[pictures].repeat_interleave(counts) + within


class BatchOrder:
    """Batches of row numbers, shuffled anew each epoch from the seed alone, resumable anywhere.

    Iterating goes from `position` (a batch number of the running epoch) to the end of the epoch;
    the state of a run is (epoch, position), which the trainer keeps and sets.
    """

    def __init__(self, size: int, *, batch_size: int, seed: int, shuffle: bool = True) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator)
        for batch in order.split(self.batch_size)[self.position :]:
            yield batch.tolist()


def make_loader(
    dataset: Dataset[Any], order: Any, *, workers: int, pin_memory: bool = False
) -> DataLoader[Any]:
    """A DataLoader over whole batches; with workers, reading and decoding overlap computation.

    Its own generator keeps torch's global one untouched, which exact resume needs.
    """
    return DataLoader(
        dataset,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        prefetch_factor=4 if workers else None,
    )
