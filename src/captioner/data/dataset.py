"""Captions paired with features or pictures, and the order in which they are visited.

Nothing here opens a picture (data/pictures.py does): a machine that trains on features needs no
library for that.

Shapes: B captions in a batch, I pictures in a batch, R regions, F image feature, S picture side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.data.captions import CaptionedImage
from captioner.data.packed import CaptionBatch, TokenStore
from captioner.data.tokenize import tokenize
from captioner.data.vocabulary import Vocabulary
from captioner.errors import DataError

# Image rows [I] -> features [I, R, F] or pictures [I, 3, S, S].
ImageSource = Callable[[Tensor], Tensor]


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

    def captions_by_row(self) -> Tensor:
        """The captions of each row, [rows, C] int64, with -1 where a row has fewer than C."""
        if not self.by_picture:
            return torch.arange(len(self.store)).unsqueeze(1)
        within = torch.arange(int(self._counts.max()))
        captions = self._starts.unsqueeze(1) + within
        return captions.masked_fill(within >= self._counts.unsqueeze(1), -1)

    def image_of_row(self) -> Tensor:
        """The image that each row's captions describe, [rows] int64."""
        return self.image_rows[self._starts] if self.by_picture else self.image_rows

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

    def rows(self) -> Tensor:
        """All rows of the epoch in the order of its batches, [size] int64."""
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.size, generator=generator)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.rows().split(self.batch_size)[self.position :]:
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
