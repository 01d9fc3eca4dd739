"""Captions paired with features or pixels, and the order in which they are visited.

Nothing here opens an image file (features/pixels.py does): a machine that trains on features needs
no library for that.

Where training sees several views of an image, one number names row and view: view k of row r among
n rows is r + k n. So do the rows of a dataset, and those of the images that its source gives.

Shapes: B captions in a batch, I images in a batch, R regions, F image feature, S height and width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.data.captions import CaptionedImage
from captioner.data.encoded import EncodedCaptions, encode_captions
from captioner.data.packed import CaptionBatch, TokenStore
from captioner.data.vocabulary import Vocabulary

# Image rows [I] -> features [I, R, F] or pixels [I, 3, S, S].
ImageSource = Callable[[Tensor], Tensor]


class CaptionDataset(Dataset[CaptionBatch]):
    """All captions of a split; indexed by a list of rows, it gives a packed batch.

    The rows number captions, or with `by_image` images: then a batch holds all captions of its
    images, and a trained encoder computes each image once instead of five times. Captions are
    cut at `max_length` words; those with no word left in the vocabulary are skipped (`skipped`
    counts them). `encoded`: what `encode_captions` makes of them, where that is known already.
    `captions_by_row` [rows, C] are each row's captions, -1 where it has fewer than C;
    `tokens_per_row` [rows] what it has to predict; `image_count` how many images the split has.
    Raises DataError when no caption is left.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        *,
        vocabulary: Vocabulary,
        source: ImageSource,
        max_length: int,
        by_image: bool = False,
        encoded: EncodedCaptions | None = None,
    ) -> None:
        if encoded is None:
            encoded = encode_captions(images, vocabulary, max_length=max_length)
        self.skipped = int(encoded.skipped)
        self.image_rows = torch.from_numpy(encoded.image_rows)
        tokens, lengths = encoded.tokens, encoded.lengths
        self.store = TokenStore.of(tokens, lengths, bos=vocabulary.bos, eos=vocabulary.eos)
        self.source, self.image_count = source, len(images)
        # Captions of one image lie together.
        rows = self.image_rows if by_image else torch.arange(len(lengths))
        counts = torch.unique_consecutive(rows, return_counts=True)[1].unsqueeze(1)
        within = torch.arange(int(counts.max()))
        captions = counts.cumsum(0) - counts + within
        self.captions_by_row = captions.masked_fill(within >= counts, -1)
        self.tokens_per_row = F.pad(self.store.lengths, (0, 1))[self.captions_by_row].sum(1)

    def __len__(self) -> int:
        return len(self.captions_by_row)

    def __getitem__(self, rows: Sequence[int]) -> CaptionBatch:
        numbers = torch.as_tensor(rows)
        views = numbers // len(self)
        captions = self.captions_by_row[numbers % len(self)]  # [rows, C]
        images = self.image_rows[captions] + self.image_count * views.unsqueeze(1)
        there = captions >= 0
        tokens, images = self.store.pack(captions[there], beside=images[there])
        images, image_rows = images.unique(return_inverse=True)
        numbers = images % self.image_count
        return CaptionBatch(self.source(images), image_rows, tokens, image_numbers=numbers)


def order_generator(seed: int, number: int) -> torch.Generator:
    """Random numbers for the order of the epoch, or pass over a text, of this number."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**64)


class BatchOrder:
    """Batches of row numbers, shuffled anew each epoch from the seed alone, resumable anywhere.

    Of several `views` one is drawn for each row, by the same generator after the order.
    Iterating goes from `position` (a batch number of the running epoch) to the end of the epoch;
    the state of a run is (epoch, position), which the trainer keeps and sets.
    """

    def __init__(
        self, size: int, *, batch_size: int, seed: int, shuffle: bool = True, views: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.views = views
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def rows(self) -> Tensor:
        """All rows of the epoch in the order of its batches, [size] int64."""
        if not self.shuffle:
            return torch.arange(self.size)
        generator = order_generator(self.seed, self.epoch)
        rows = torch.randperm(self.size, generator=generator)
        if self.views > 1:
            rows += self.size * torch.randint(self.views, (self.size,), generator=generator)
        return rows

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
