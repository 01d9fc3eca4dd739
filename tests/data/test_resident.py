"""Static-shape batches gathered from data that lie whole on a device: several views of images."""

from __future__ import annotations

import pytest
import torch
from graph_runs import FEATURES, IMAGES, VOCABULARY, make_images
from torch import Tensor

from captioner.data.dataset import BatchOrder, CaptionDataset, make_loader
from captioner.data.resident import ResidentCaptions, ResidentLoader, token_capacities

VIEWS = torch.cat([FEATURES, -FEATURES]).half()  # [2 I, R, F]


@pytest.mark.parametrize("by_image", [False, True])
def test_batches_with_views_are_those_of_the_plain_loader(by_image: bool) -> None:
    dataset = CaptionDataset(
        make_images(),
        vocabulary=VOCABULARY,
        source=lambda rows: VIEWS[rows].float(),
        max_length=20,
        by_image=by_image,
    )
    assert dataset.image_count == IMAGES
    order = BatchOrder(len(dataset), batch_size=5, seed=2, views=2)
    data = ResidentCaptions(
        dataset,
        batch_size=5,
        features=VIEWS,
        device=torch.device("cpu"),
        capacities=token_capacities(dataset.tokens_per_row, 5, seed=1),
    )
    assert data.padding_row == 2 * len(dataset)
    order.epoch, order.position = 3, 1
    shown: list[Tensor] = []
    batches = make_loader(dataset, order, workers=0)
    for planned, batch in zip(ResidentLoader(data, order), batches, strict=True):
        found = data.gather(planned.rows, planned.capacity)
        tokens, sizes = len(batch.targets), batch.tokens.batch_sizes
        assert planned.tokens == int(found.tokens) == tokens
        assert torch.equal(found.inputs[:tokens], batch.tokens.inputs)
        assert torch.equal(found.targets[:tokens], batch.targets)
        assert torch.equal(found.batch_sizes[: len(sizes)], sizes)
        assert found.images.dtype == torch.float32
        seen = found.images[found.image_rows][: sizes[0]]
        assert torch.equal(seen, batch.images[batch.image_rows])
        shown.append(seen)
    every = torch.cat(shown)
    mirrored = (every[:, None] == VIEWS[IMAGES:].float()).flatten(2).all(2).any(1)
    assert 0 < int(mirrored.sum()) < len(every)


def test_a_dummy_batch_has_no_token() -> None:
    dataset = CaptionDataset(
        make_images(), vocabulary=VOCABULARY, source=lambda rows: VIEWS[rows], max_length=20
    )
    data = ResidentCaptions(
        dataset, batch_size=3, features=VIEWS, device=torch.device("cpu"), capacities=(64, 64)
    )
    batch = data.gather(torch.full((3,), data.padding_row), 64)
    assert int(batch.tokens) == 0 and not batch.batch_sizes.any()
