"""A data set of captions that lies on the device whole, and static-shape batches gathered there.

A CUDA graph that holds a training step has fixed shapes, so its batches have a token capacity that
they fill in part (the capacity form of `ops.lstm_packed`). Nearly all batches fit the smaller of
two capacities; the host, which knows order and lengths, plans which batch takes which.

Shapes: I images, V views of each, R regions, F image feature, P rows of a batch, C captions of a
row (1, or an image's), B = P C captions, T longest length, N token capacity.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.data.dataset import BatchOrder, CaptionDataset
from captioner.ops.linear_cross_entropy import IGNORED
from captioner.ops.packing import packed_places

SHUFFLES = 16  # epochs from which the usual batch is known
UNIT = 64  # capacities are multiples of so many tokens


@dataclass(frozen=True)
class StaticBatch:
    """A batch of static shapes on the device, of which `tokens` [] are filled.

    images [I, R, F], image_rows [B], inputs [N], targets [N] (IGNORED beyond the last token) and
    batch_sizes [T].
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
    """What the host knows of a batch that the device will gather.

    rows [P] of the data, on the device; how many tokens; the smallest capacity that it fits.
    """

    rows: Tensor
    tokens: int
    capacity: int


def token_capacities(
    tokens_per_row: Tensor, batch_size: int, *, seed: int, quantile: float = 0.999
) -> tuple[int, int]:
    """The capacity that all but a thousandth of shuffled batches fit, and one that all do.

    `tokens_per_row` [rows] int64.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = []
    for _ in range(SHUFFLES):
        shuffled = tokens_per_row[torch.randperm(len(tokens_per_row), generator=generator)]
        totals += [int(batch.sum()) for batch in shuffled.split(batch_size)]
    usual = float(torch.tensor(totals).double().quantile(quantile))
    largest = int(tokens_per_row.sort(descending=True)[0][:batch_size].sum())
    return math.ceil(usual / UNIT) * UNIT, math.ceil(largest / UNIT) * UNIT


class ResidentCaptions:
    """`dataset` on `device`, for batches of up to `batch_size` rows.

    `features` [V I, R, F] are those of all its images, in float32 or float16, view after view;
    `capacities` as `token_capacities` gives them. Rows name views as in data/dataset.py.
    `padding_row` has captions without a token: it fills up batches, and a batch of nothing else is
    a dummy batch.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        *,
        batch_size: int,
        features: Tensor,
        device: torch.device,
        capacities: tuple[int, int],
    ) -> None:
        self.batch_size, self.device, self.capacities = batch_size, device, capacities
        views = len(features) // dataset.image_count
        self.tokens_per_row = dataset.tokens_per_row.repeat(views)  # on the host
        store, captions = dataset.store, dataset.captions_by_row
        images_of_view = dataset.image_rows[captions[:, 0]]
        first_images = dataset.image_count * torch.arange(views).unsqueeze(1)
        images_of_rows = (first_images + images_of_view).flatten()
        self.padding_row = len(images_of_rows)
        captions = F.pad(captions.repeat(views, 1), (0, 0, 0, 1), value=-1)
        # Where a row has fewer than C captions it has the one without a token, behind all others.
        self._captions = torch.where(captions < 0, len(store), captions).to(device)
        self._images = F.pad(images_of_rows, (0, 1)).to(device)
        self._lengths = F.pad(store.lengths, (0, 1)).to(device)
        self._starts = F.pad(store.starts, (0, 1)).to(device)
        self._tokens = store.tokens.to(device)
        self._features = features.to(device)
        self.steps = int(store.lengths.max())  # T

    def gather(self, rows: Tensor, capacity: int) -> StaticBatch:
        """The batch of `rows` [P]; index arithmetic on the device alone."""
        captions = self._captions.index_select(0, rows)  # [P, C]
        per_row, captions = captions.shape[1], captions.flatten()
        lengths = self._lengths.index_select(0, captions)
        lengths, order = lengths.sort(descending=True, stable=True)
        captions = captions.index_select(0, order)
        steps = torch.arange(self.steps, device=rows.device).unsqueeze(1)
        batch_sizes = (steps < lengths).sum(1)

        step, sequence, filled = packed_places(batch_sizes, capacity)
        place = self._starts.index_select(0, captions.index_select(0, sequence)) + step
        place = torch.where(filled, place, 0)
        inputs = torch.where(filled, self._tokens.index_select(0, place), 0)
        targets = torch.where(filled, self._tokens.index_select(0, place + 1), IGNORED)

        images = self._images.index_select(0, rows)
        image_rows = order // per_row
        if per_row == 1:  # every caption brings its image, in the packed order
            images = images.index_select(0, order)
            image_rows = torch.arange(len(rows), device=rows.device)
        features = self._features.index_select(0, images).float()
        return StaticBatch(features, image_rows, inputs, targets, batch_sizes, batch_sizes.sum())


class ResidentLoader:
    """Iterates the plans of an epoch's batches, as a DataLoader does the batches.

    From the order's position on; the last batch of an epoch is filled up with padding rows.
    """

    def __init__(self, data: ResidentCaptions, order: BatchOrder) -> None:
        self.data, self.order = data, order

    def __iter__(self) -> Iterator[PlannedBatch]:
        data, rows = self.data, self.order.rows()
        size = data.batch_size
        padded = F.pad(rows, (0, len(self.order) * size - len(rows)), value=data.padding_row)
        on_device = padded.view(-1, size).to(data.device)
        batches = data.tokens_per_row[rows].split(size)
        for number in range(self.order.position, len(self.order)):
            tokens = int(batches[number].sum())
            capacity = data.capacities[tokens > data.capacities[0]]
            yield PlannedBatch(on_device[number], tokens, capacity)
