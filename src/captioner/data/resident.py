"""A data set of captions that lies on the device whole, and batches gathered there.

A CUDA graph that holds a training step has fixed shapes and must not ask the host which captions
come next. So an epoch's order lies on the device too, with a counter, and batches are in the
capacity form of `ops.lstm_packed`: room for N tokens, of which the batch fills a part. Nearly all
batches fit the smaller of two rooms; the host, which knows order and lengths as well, says which.

Shapes: I images, R regions, F image feature, P rows of a batch, C captions of a row (1, or a
picture's), B = P C captions, T longest length, N tokens there is room for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.data.dataset import BatchOrder, CaptionDataset
from captioner.ops.linear_cross_entropy import IGNORED
from captioner.ops.packing import packed_places

SHUFFLES = 16  # epochs from which the usual batch is known
UNIT = 64  # rooms are multiples of so many tokens


@dataclass(frozen=True)
class RoomyBatch:
    """A batch in the capacity form: `targets` beyond the last token are IGNORED.

    images [I, R, F], image_rows [B], inputs [N], targets [N], batch_sizes [T] and tokens [], how
    many there are: all on the device.
    """

    images: Tensor
    image_rows: Tensor
    inputs: Tensor
    targets: Tensor
    batch_sizes: Tensor
    tokens: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the model's loss takes before the targets."""
        return self.images, self.image_rows, self.inputs, self.batch_sizes


@dataclass(frozen=True)
class PlannedBatch:
    """What the host knows of a batch that the device will gather: its tokens and its room."""

    tokens: int
    room: int


def measure_rooms(
    tokens_per_row: Tensor, batch_size: int, *, seed: int, quantile: float = 0.999
) -> tuple[int, int]:
    """The room in tokens that all but a thousandth of shuffled batches fit, and one for any batch.

    `tokens_per_row` [rows] int64.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = [
        int(batch.sum())
        for _ in range(SHUFFLES)
        for batch in tokens_per_row[
            torch.randperm(len(tokens_per_row), generator=generator)
        ].split(batch_size)
    ]  # fmt: skip
    usual = float(torch.tensor(totals).double().quantile(quantile))
    largest = int(tokens_per_row.sort(descending=True)[0][:batch_size].sum())
    return _rounded_up(usual), _rounded_up(largest)


def _rounded_up(tokens: float) -> int:
    return math.ceil(tokens / UNIT) * UNIT


class ResidentCaptions:
    """`dataset` on `device`, its batches in the order of `order`.

    `features` [I, R, F] are those of all its images; `rooms` as `measure_rooms` gives them. An
    epoch is begun by iterating `planned`; then `gather` gives one batch after another.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        order: BatchOrder,
        *,
        features: Tensor,
        device: torch.device,
        rooms: tuple[int, int],
        group: int = 1,
    ) -> None:
        self.order, self.rooms, self.group = order, rooms, group
        self._tokens_per_row = dataset.tokens_per_row
        store, captions = dataset.store, dataset.captions_by_row()
        # One row more, of captions without a word: it fills up the last batch. Of these captions
        # there is one, behind all others.
        nobody = torch.full_like(captions[:1], -1)
        captions = torch.cat([captions, nobody])
        self._nobody = len(captions) - 1
        end = torch.zeros(1, dtype=torch.int64)
        self._captions = torch.where(captions < 0, len(store), captions).to(device)
        self._images = torch.cat([dataset.image_of_row(), end]).to(device)
        self._lengths = torch.cat([store.lengths, end]).to(device)
        self._starts = torch.cat([store.starts, end]).to(device)
        self._tokens = store.tokens.to(device)
        self._features = features.to(device)
        self.steps = int(store.lengths.max())  # T
        # The last group of batches is a whole one, and behind it lies one more of nobody.
        self._end = -(-len(order) // group) * group
        self._rows = torch.full(
            (self._end + group, order.batch_size), self._nobody, dtype=torch.int64, device=device
        )
        self.position = torch.zeros(1, dtype=torch.int64, device=device)

    def state(self) -> list[Tensor]:
        """What `gather` changes."""
        return [self.position]

    def rest(self) -> None:
        """Let the batches of the next step be empty ones."""
        self.position.fill_(self._end)

    def planned(self) -> Iterator[PlannedBatch]:
        """Begin the order's epoch at its position; for each batch that is left, what is known."""
        rows = self.order.rows()
        self._rows.fill_(self._nobody)
        self._rows.view(-1)[: len(rows)].copy_(rows)
        self.position.fill_(self.order.position)
        batches = self._tokens_per_row[rows].split(self.order.batch_size)
        for tokens in (int(batch.sum()) for batch in batches[self.order.position :]):
            yield PlannedBatch(tokens, self.rooms[tokens > self.rooms[0]])

    def gather(self, room: int) -> RoomyBatch:
        """The next batch, with room for so many tokens; index arithmetic on the device alone."""
        rows = self._rows.index_select(0, self.position).squeeze(0)  # [P]
        self.position += 1
        captions = self._captions.index_select(0, rows)  # [P, C]
        per_row = captions.shape[1]
        lengths, order = (
            self._lengths.index_select(0, captions.flatten()).sort(descending=True, stable=True)
        )  # fmt: skip
        captions = captions.flatten().index_select(0, order)
        steps = torch.arange(self.steps, device=rows.device).unsqueeze(1)
        batch_sizes = (steps < lengths).sum(1)

        step, sequence, filled = packed_places(batch_sizes, room)
        place = self._starts.index_select(0, captions.index_select(0, sequence)) + step
        place = torch.where(filled, place, 0)
        inputs = torch.where(filled, self._tokens.index_select(0, place), 0)
        targets = torch.where(filled, self._tokens.index_select(0, place + 1), IGNORED)

        images = self._images.index_select(0, rows)
        image_rows = order // per_row
        if per_row == 1:  # every caption brings its image, in the packed order
            images = images.index_select(0, order)
            image_rows = torch.arange(len(rows), device=rows.device)
        return RoomyBatch(
            self._features.index_select(0, images), image_rows, inputs, targets, batch_sizes,
            batch_sizes.sum(),
        )  # fmt: skip


class PlannedLoader:
    """Iterates the planned batches of a resident data set, as a DataLoader does real ones."""

    def __init__(self, data: ResidentCaptions) -> None:
        self.data = data

    def __iter__(self) -> Iterator[PlannedBatch]:
        return self.data.planned()
