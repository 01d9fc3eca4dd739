"""What a batch holds, in which order batches come, and how a run finds its place again."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset, make_loader
from captioner.data.packed import CaptionBatch
from captioner.data.vocabulary import Vocabulary
from captioner.errors import DataError, ImageError
from captioner.features.source import DecodedImages
from captioner.models.transforms import ImageTransform

WORDS = ["a", "dog", "cat", "runs", "sits"]
VOCABULARY = Vocabulary(WORDS, counts=[1] * 9, rare="drop")
CAPTIONS = [
    ("A dog runs.", "a dog"),
    ("zebra", "A cat sits!", "cat"),
    ("zebras only",),
    ("a cat runs a dog sits",),
]
IMAGES = [CaptionedImage(f"{k}.png", Path(f"{k}.png"), c, k) for k, c in enumerate(CAPTIONS)]


class Source:
    """Features that tell which image they are of, and a record of what was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.asked.append(rows.tolist())
        return rows.float().view(-1, 1, 1).expand(-1, 1, 2)


def make(**settings: object) -> CaptionDataset:
    arguments = {"vocabulary": VOCABULARY, "source": Source(), "max_length": 10, **settings}
    return CaptionDataset(IMAGES, **arguments)  # type: ignore[arg-type]


def contents(batch: CaptionBatch) -> list[tuple[int, str]]:
    """(image, caption) of every caption of a batch, sorted: read back from the packed rows."""
    sizes, captions = batch.tokens.batch_sizes.tolist(), []
    offsets = torch.tensor([0, *sizes]).cumsum(0).tolist()
    for row, image in enumerate(batch.image_rows.tolist()):
        places = [offset + row for offset, size in zip(offsets, sizes, strict=False) if row < size]
        inputs, targets = batch.tokens.inputs[places], batch.tokens.targets[places]
        assert inputs[0] == VOCABULARY.bos and targets[-1] == VOCABULARY.eos
        assert torch.equal(inputs[1:], targets[:-1])
        words = " ".join(VOCABULARY.decode(targets.tolist()))
        captions.append((int(batch.images[image, 0, 0]), words))
    return sorted(captions)


EVERYTHING = [
    (0, "a dog"),
    (0, "a dog runs"),
    (1, "a cat sits"),
    (1, "cat"),
    (3, "a cat runs a dog sits"),
]


def test_all_captions_come_with_their_images_each_image_once() -> None:
    dataset = make()
    assert len(dataset) == 5 and dataset.skipped == 2
    batch = dataset[range(5)]
    assert contents(batch) == EVERYTHING
    assert dataset.source.asked == [[0, 1, 3]]  # type: ignore[attr-defined]
    assert len(batch.images) == 3


def test_a_part_of_the_captions_in_any_order() -> None:
    assert contents(make()[[4, 1]]) == [EVERYTHING[0], EVERYTHING[4]]
    assert contents(make()[[3]]) == [(1, "cat")]


def test_by_image_gives_all_captions_of_the_images() -> None:
    dataset = make(by_image=True)
    assert len(dataset) == 3  # the image without a usable caption is left out
    assert contents(dataset[[0, 1, 2]]) == EVERYTHING
    assert contents(dataset[[2, 0]]) == [*EVERYTHING[:2], EVERYTHING[4]]
    assert contents(dataset[[1]]) == EVERYTHING[2:4]
    assert dataset.source.asked == [[0, 1, 3], [0, 3], [1]]  # type: ignore[attr-defined]


def test_captions_are_cut_at_max_length() -> None:
    assert contents(make(max_length=2)[[4]]) == [(3, "a cat")]
    assert make(max_length=2).store.lengths.max() == 3  # two words and the end


def test_unknown_words_are_kept_as_such_when_the_vocabulary_says_so() -> None:
    dataset = make(vocabulary=Vocabulary(WORDS, counts=[1] * 9))
    assert len(dataset) == 7 and dataset.skipped == 0
    assert dataset[[4]].targets.tolist() == [6, 2]
    assert dataset[[5]].targets.tolist() == [3, 3, 2]


def test_no_caption_left_is_refused() -> None:
    with pytest.raises(DataError, match="none of 7 captions has a word of the vocabulary"):
        make(vocabulary=Vocabulary(["horse"], counts=[1] * 5, rare="drop"))


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (9, 3), (2, 5), (1, 1)])
def test_every_epoch_visits_every_row_once(size: int, batch_size: int) -> None:
    order = BatchOrder(size, batch_size=batch_size, seed=1)
    for order.epoch in range(4):
        batches = list(order)
        assert len(batches) == len(order)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert sorted(chain.from_iterable(batches)) == list(range(size))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def visits(seed: int, epoch: int) -> list[list[int]]:
        torch.manual_seed(seed * 7 + epoch)
        order = BatchOrder(40, batch_size=6, seed=seed)
        order.epoch = epoch
        return list(order)

    again = {(seed, epoch): visits(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert all(visits(*key) == value for key, value in again.items())
    assert len({str(value) for value in again.values()}) == 9


def test_visiting_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    list(make_loader(make(), BatchOrder(5, batch_size=2, seed=0), workers=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_is_resumed_at_a_position() -> None:
    order = BatchOrder(40, batch_size=6, seed=3)
    order.epoch = 2
    whole = list(order)
    for position in range(len(order) + 1):
        order.position = position
        assert list(order) == whole[position:]


def test_without_shuffling_rows_come_as_they_are() -> None:
    order = BatchOrder(5, batch_size=2, seed=0, shuffle=False)
    assert list(order) == [[0, 1], [2, 3], [4]]


def test_of_several_views_each_row_draws_one_after_the_order() -> None:
    size, drawn = 4000, []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        plain = BatchOrder(size, batch_size=30, seed=seed)
        order = BatchOrder(size, batch_size=30, seed=seed, views=2)
        plain.epoch = order.epoch = epoch
        torch.manual_seed(epoch)
        before = torch.get_rng_state()
        rows = order.rows()
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(rows, order.rows())
        assert torch.equal(rows % size, plain.rows())
        views = rows // size
        assert set(views.tolist()) == {0, 1}
        assert abs(int(views.sum()) - size / 2) < 5 * (size / 4) ** 0.5  # of as many coins
        drawn.append(views[rows.argsort()].tolist())
        order.position = 7
        assert list(chain.from_iterable(order)) == rows[7 * 30 :].tolist()
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_the_order_of_one_view_is_that_of_version_0_1() -> None:
    order = BatchOrder(50, batch_size=8, seed=3, views=1)
    order.epoch = 4
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 4)
    assert torch.equal(order.rows(), torch.randperm(50, generator=generator))


@pytest.mark.parametrize("by_image", [False, True])
def test_a_row_brings_the_view_that_it_names(by_image: bool) -> None:
    dataset = make(by_image=by_image)
    rows, images = len(dataset), len(IMAGES)
    mirrored = [(image + images, caption) for image, caption in EVERYTHING]
    assert contents(dataset[range(rows, 2 * rows)]) == mirrored
    # An image that a batch shows in two views is there twice.
    both = dataset[[0, rows]] if by_image else dataset[[0, 1 + rows]]
    assert dataset.source.asked[-1] == [0, images]  # type: ignore[attr-defined]
    assert [image for image, _ in contents(both)] == sorted([0, images] * (2 if by_image else 1))


def tensors(batch: CaptionBatch) -> list[Tensor]:
    return [*batch.model_inputs, batch.targets]


def test_workers_give_the_same_batches_from_the_same_position() -> None:
    alone, helped = ([], [])
    for workers, batches in ((0, alone), (2, helped)):
        order = BatchOrder(5, batch_size=2, seed=4)
        loader = make_loader(make(), order, workers=workers)
        for order.epoch, order.position in ((0, 0), (1, 1)):
            batches += [tensors(batch) for batch in loader]
    assert len(alone) == 3 + 2
    torch.testing.assert_close(helped, alone, rtol=0, atol=0)


@pytest.mark.parametrize("keep_bytes", [0, 3 * 8 * 8 * 3])
def test_images_are_read_when_asked_for_and_kept_where_they_fit(
    tmp_path: Path, keep_bytes: int
) -> None:
    images = []
    for number, colour in enumerate(["red", "lime", "blue"]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (12, 9), colour).save(path)
        images.append(CaptionedImage(path.name, path, ("a dog",), number))
    transform = ImageTransform(size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    source = DecodedImages(images, transform, keep_bytes=keep_bytes)
    assert source.kept == (keep_bytes > 0)
    expected = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).view(2, 3, 1, 1)
    for _ in range(2):
        found = source(torch.tensor([2, 0]))
        torch.testing.assert_close(found, expected.expand(2, 3, 8, 8))
        assert found.is_contiguous(memory_format=torch.channels_last)
        with Image.open(images[2].path) as image:
            assert torch.equal(found[0], transform(image))
    for image in images:
        image.path.write_bytes(b"not an image")
    if source.kept:
        assert torch.equal(source(torch.tensor([2, 0])), found)
    with pytest.raises(ImageError, match=str(images[1].path)):
        source(torch.tensor([1]))


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_images_are_mirrored_where_rows_ask_for_it(tmp_path: Path, keep_bytes: int) -> None:
    images = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((8, 8), 50 + number).convert("RGB").save(path)
        images.append(CaptionedImage(path.name, path, ("a dog",), number))
    transform = ImageTransform(size=8, resize=8)
    plain = DecodedImages(images, transform, keep_bytes=keep_bytes)
    views = DecodedImages(images, transform, keep_bytes=keep_bytes, views=("original", "mirror"))
    expected = plain(torch.tensor([0, 1, 1]))
    found = views(torch.tensor([0, 1, 4]))
    assert torch.equal(found[:2], expected[:2])
    assert torch.equal(found[2], expected[2].flip(-1)) and not torch.equal(found[2], found[1])
    assert found.is_contiguous(memory_format=torch.channels_last)
