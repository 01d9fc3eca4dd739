"""Windows against a loop: what each packed sequence reads, continues, and leaves to the next."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.data.text.windows import (
    TextWindows,
    WindowBatch,
    WindowOrder,
    random_cuts,
    random_windows,
    window_batch,
)
from captioner.errors import DataError

BOS = 1


def sequences(batch: WindowBatch) -> list[tuple[list[int], list[int]]]:
    """The packed sequences unpacked one by one: inputs and targets."""
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in range(int(batch.batch_sizes[0]))]
    at = 0
    for size in batch.batch_sizes.tolist():
        for k in range(size):
            found[k][0].append(int(batch.inputs[at]))
            found[k][1].append(int(batch.targets[at]))
            at += 1
    assert at == len(batch.inputs) == len(batch.targets)
    return found


def by_loop(tokens: Tensor, fresh: bool) -> list[tuple[list[int], list[int], int, bool]]:
    """Of each sequence: inputs, targets, the stream it continues, whether it is the last."""
    expected = []
    for stream, row in enumerate(tokens.tolist()):
        pieces: list[tuple[list[int], list[int], int]] = []
        for t, (token, following) in enumerate(pairwise(row)):
            if token == BOS or t == 0:
                pieces.append(([], [], -1 if fresh or token == BOS or t else stream))
            pieces[-1][0].append(token)
            pieces[-1][1].append(following)
        expected += [(*p, k == len(pieces) - 1) for k, p in enumerate(pieces)]
    return expected


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_documents_begin_sequences_of_their_own(share: float, fresh: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    for streams, length in ((1, 1), (1, 9), (5, 8), (4, 2)):
        tokens = torch.randint(4, 9, (streams, length + 1), generator=generator)
        tokens[torch.rand(tokens.shape, generator=generator) < share] = BOS
        batch = window_batch(tokens, bos=BOS, fresh=fresh)
        found = sequences(batch)
        origins, last_sequences = batch.origins.tolist(), batch.last_sequences.tolist()
        mine = [(*pair, origin) for pair, origin in zip(found, origins, strict=True)]
        expected = by_loop(tokens, fresh)
        assert sorted(mine) == sorted(one[:3] for one in expected)
        assert [mine[k] for k in last_sequences] == [one[:3] for one in expected if one[3]]


@pytest.mark.parametrize(("random", "window"), [(False, 7), (True, 10), (True, 40)])
def test_windows_read_every_token_of_every_stream_once(random: bool, window: int) -> None:
    tokens = np.arange(4, 1004).astype(np.uint16)
    windows = TextWindows(tokens, batch_size=3, window=window, bos=BOS, seed=5, random=random)
    order = WindowOrder(len(windows))
    read: dict[int, list[list[int]]] = {}
    for epoch in range(2):
        order.epoch = epoch
        for number, window in order:
            batch = windows[number, window]
            streams = batch.inputs.view(-1, 3).t().tolist()
            assert torch.equal(batch.targets, batch.inputs + 1)
            assert batch.origins.tolist() == ([-1] * 3 if window == 0 else [0, 1, 2])
            for mine, new in zip(read.setdefault(number, [[], [], []]), streams, strict=True):
                mine.extend(new)
    for streams in read.values():
        whole = [token for stream in streams for token in stream]
        assert whole == list(range(whole[0], whole[0] + 3 * windows.length))
    assert read[0][0][0] != read[1][0][0]  # each pass is cut elsewhere
    assert 3 * windows.length >= 1000 - 2 * windows.window - 3


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_random_lengths_are_normal_around_the_window_and_seldom_around_its_half() -> None:
    cuts = np.array(random_cuts(2_000_000, 70, drawn(3)))
    lengths = np.diff(cuts)
    assert (cuts[0], cuts[-1], len(lengths)) == (0, 2_000_000, random_windows(2_000_000, 70))
    halves = lengths < 52
    assert lengths.min() >= 5 and abs(halves.mean() - 0.05) < 6 * (0.05 * 0.95 / len(cuts)) ** 0.5
    for part, middle in ((lengths[~halves], 70), (lengths[halves], 35)):
        assert part.mean() == pytest.approx(middle, abs=1) and part.std() == pytest.approx(5, 0.1)
    for length in range(10, 200):  # however few, none is empty
        for seed in range(5):
            assert np.diff(random_cuts(length, 10, drawn(seed))).min() > 0


def test_an_epoch_may_be_any_number_of_windows_and_continues_where_the_last_ended() -> None:
    whole = WindowOrder(5)
    assert len(whole) == 5 and list(whole) == [(0, k) for k in range(5)]
    order = WindowOrder(5, epoch_windows=3)
    seen = []
    for epoch in range(4):
        order.epoch, order.position = epoch, 0
        seen += list(order)
        order.position = 2
        assert list(order) == seen[-1:]
    assert seen == [divmod(k, 5) for k in range(12)]


def test_a_text_shorter_than_a_window_is_refused() -> None:
    assert len(TextWindows(np.arange(32), batch_size=3, window=8, bos=BOS, seed=0)) == 1
    with pytest.raises(DataError, match=r"31 tokens do not fill one window of 8 .* takes 32"):
        TextWindows(np.arange(31), batch_size=3, window=8, bos=BOS, seed=0)
