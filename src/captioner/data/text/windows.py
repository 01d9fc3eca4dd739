"""Windows over a token stream: what truncated backpropagation through time trains on.

Shapes: B streams side by side, T window length, S packed sequences of a batch, N packed tokens.

The text is cut into B streams that are read in parallel, T tokens a step; a stream's state is
carried from window to window. Where a document begins inside a window, a new sequence begins with a
state of zeros. Without such places all sequences have equal length, and nothing is sorted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from captioner.data.dataset import order_generator
from captioner.data.packed import TensorBatch, packed_order
from captioner.errors import DataError

# Random lengths as Merity et al. (2017) draw them: how often they are around the window, otherwise
# around its half; their deviation; the shortest.
SHARE_OF_WHOLE, DEVIATION, SHORTEST = 0.95, 5.0, 5


@dataclass(frozen=True)
class WindowBatch(TensorBatch):
    """One window of every stream: inputs, targets [N] int64 packed; batch_sizes [T] on the CPU;
    origins [S] int64, the stream whose state a sequence continues, or -1 for zeros; last_sequences
    [B] int64, the sequence whose last state each stream keeps for the next window."""

    inputs: Tensor
    targets: Tensor
    batch_sizes: Tensor
    origins: Tensor
    last_sequences: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the model's forward takes."""
        return self.inputs, self.batch_sizes, self.origins, self.last_sequences


def window_batch(tokens: Tensor, *, bos: int, fresh: bool) -> WindowBatch:
    """The batch of tokens [B, T + 1]: each but the last of a row is read, the next is predicted.

    `fresh` begins every stream with a state of zeros, as `bos` in the input does anywhere.
    """
    streams, length = tokens.shape[0], tokens.shape[1] - 1
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    begins = inputs == bos
    rows = torch.arange(streams)
    if not begins[:, 1:].any():
        origins = torch.where(begins[:, 0] | fresh, -1, rows)
        sizes = torch.full((length,), streams)
        return WindowBatch(inputs.t().flatten(), targets.t().flatten(), sizes, origins, rows)
    cut = begins.clone()
    cut[:, 0] = True
    stream, first = cut.nonzero(as_tuple=True)
    starts = stream * length + first
    ends = torch.cat([starts[1:], torch.tensor([streams * length])])
    where, batch_sizes, order = packed_order(starts, ends - starts)
    zeros = begins[stream, first] | (fresh & (first == 0))
    last = torch.searchsorted(stream, rows, right=True) - 1
    return WindowBatch(
        inputs=inputs.reshape(-1)[where],
        targets=targets.reshape(-1)[where],
        batch_sizes=batch_sizes,
        origins=torch.where(zeros, -1, stream)[order],
        last_sequences=order.argsort()[last],
    )


class TextWindows(Dataset[WindowBatch]):
    """A stream of tokens as windows, indexed by (pass, window); the last window may be shorter.

    Each pass over the text cuts it at an offset of its own, drawn from `seed`, and with `random`
    into windows of random lengths (`random_cuts`). `streams`: those of the `batch_size` that this
    process reads. DataError when a stream is shorter than a window.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        batch_size: int,
        window: int,
        bos: int,
        seed: int,
        streams: range | None = None,
        random: bool = False,
    ) -> None:
        self.tokens, self.batch_size, self.window = tokens, batch_size, window
        self.bos, self.seed, self.random = bos, seed, random
        self._kept: tuple[int, int, Sequence[int]] | None = None  # of one pass, see `_cut`
        self.streams = range(batch_size) if streams is None else streams
        self.length = (len(tokens) - window) // batch_size
        if self.length < window:
            raise DataError(
                f"the text is too short: {len(tokens)} tokens do not fill one window of {window} "
                f"in each of {batch_size} streams, which takes {window * (batch_size + 1)}; take a "
                "smaller trainer.batch_size or trainer.window"
            )

    def __len__(self) -> int:
        if self.random:
            return random_windows(self.length, self.window)
        return -(-self.length // self.window)

    def __getitem__(self, place: tuple[int, int]) -> WindowBatch:
        number, window = place
        _, offset, cuts = self._cut(number)
        start, stop = cuts[window], cuts[window + 1]
        begin = offset + start
        rows = [
            self.tokens[begin + row * self.length : begin + row * self.length + stop - start + 1]
            for row in self.streams
        ]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        return window_batch(tokens, bos=self.bos, fresh=window == 0)

    def _cut(self, number: int) -> tuple[int, int, Sequence[int]]:
        """A pass, its offset, and where its windows begin in a stream, with the end."""
        kept = self._kept
        if kept is None or kept[0] != number:
            generator = order_generator(self.seed, number)
            offset = int(torch.randint(self.window, (), generator=generator))
            if self.random:
                cuts = random_cuts(self.length, self.window, generator)
            else:
                cuts = [*range(0, self.length, self.window), self.length]
            self._kept = kept = (number, offset, cuts)
        return kept


def random_windows(length: int, window: int) -> int:
    """How many windows of random lengths a stream of this length is cut into."""
    mean = window * (SHARE_OF_WHOLE + (1 - SHARE_OF_WHOLE) / 2)
    return max(1, round(length / mean))


def random_cuts(length: int, window: int, drawn: torch.Generator) -> list[int]:
    """Where windows of random lengths begin in a stream, and its end: `random_windows` + 1 places
    from 0 to `length`.

    A length is normal with a deviation of 5 around `window`, or with probability 0.05 around its
    half, and 5 or more (Merity et al. 2017, "Regularizing and Optimizing LSTM Language Models");
    those of a pass are then scaled to fill the stream, so that every pass has equally many windows.
    """
    count = random_windows(length, window)
    whole = torch.rand(count, generator=drawn, dtype=torch.float64) < SHARE_OF_WHOLE
    middle = torch.where(whole, float(window), window / 2)
    noise = torch.randn(count, generator=drawn, dtype=torch.float64)
    ends = (middle + DEVIATION * noise).clamp(min=SHORTEST).floor().cumsum(0)
    return [0, *(ends * (length / ends[-1])).round().long().tolist()]


class WindowOrder:
    """The windows of pass after pass over the text; an epoch is `epoch_windows` of them, or a pass.

    The state of a run is (epoch, position), which the trainer keeps and sets.
    """

    def __init__(self, windows: int, *, epoch_windows: int | None = None) -> None:
        self.windows, self.epoch_windows = windows, epoch_windows or windows
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        return self.epoch_windows

    def __iter__(self) -> Iterator[tuple[int, int]]:
        done = self.epoch * self.epoch_windows
        for number in range(done + self.position, done + self.epoch_windows):
            yield divmod(number, self.windows)
