"""LSTMs with other cells, one step after another in PyTorch's operators: recurrent ideas to try.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size (H above the
first layer), H hidden size, L layers.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROUNDS = 5  # of a mogrifier: Melis et al. find five or six the best


class SteppedLSTM(nn.LSTM):
    """torch.nn.LSTM's weights and state, (h, c) each [L, B, H], with a cell of its own."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, *, dropout: float
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout=dropout)

    @abstractmethod
    def read(self, k: int, rows: Tensor) -> Tensor:
        """What layer k's steps take of rows [U, E], for all of them at once: [U, any size]."""

    @abstractmethod
    def cell(
        self, k: int, read: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A step of layer k: h and c, each [B, H], after those before it and `read` [B, ...]."""

    def layer_sizes(self, k: int) -> tuple[int, int]:
        """E and H of layer k."""
        return (self.hidden_size if k else self.input_size), self.hidden_size

    def forward_packed(
        self,
        data: Tensor,  # [U, E]
        batch_sizes: Tensor,  # [T] int64 on the CPU
        state: Sequence[Tensor] | None = None,  # h and c, each [L, B, H]
        *,
        input_rows: Tensor | None = None,  # [N] int64
        between: Callable[[Tensor], Tensor] | None = None,
        weights_hh: Sequence[Tensor] | None = None,  # L of [4H, H]
        capacity: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output [N, H] and the state; arguments as `LSTM.forward_packed`.

        ValueError with `capacity`: the lengths of sequences are read on the host.
        """
        if capacity:
            raise ValueError(f"capacity needs the plain LSTM, this is {type(self).__name__}")
        sizes = batch_sizes.tolist()
        if state is None:
            state = (data.new_zeros(self.num_layers, sizes[0], self.hidden_size),) * 2
        last: list[tuple[Tensor, Tensor]] = []
        for k in range(self.num_layers):
            read = self.read(k, data)
            if input_rows is not None and k == 0:
                read = read[input_rows]
            weight_hh = self.all_weights[k][1] if weights_hh is None else weights_hh[k]
            data, ended = self._steps(k, read.split(sizes), (state[0][k], state[1][k]), weight_hh)
            last.append(ended)
            if k < self.num_layers - 1:
                data = between(data) if between else F.dropout(data, self.dropout, self.training)
        h, c = (torch.stack(one) for one in zip(*last, strict=True))
        return data, (h, c)

    def _steps(
        self, k: int, steps: Sequence[Tensor], state: tuple[Tensor, Tensor], weight_hh: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """All steps of layer k: h of every token [N, H], and each sequence's state at its end."""
        h, c = state
        outputs, ended = [], []
        for read in steps:
            if len(read) < len(h):  # the shortest are the last
                ended.append((h[len(read) :], c[len(read) :]))
                h, c = h[: len(read)], c[: len(read)]
            h, c = self.cell(k, read, h, c, weight_hh)
            outputs.append(h)
        ended.append((h, c))
        hy, cy = (torch.cat(one[::-1]) for one in zip(*ended, strict=True))
        return torch.cat(outputs), (hy, cy)


class LayerNormLSTM(SteppedLSTM):
    """Layer normalisation in the LSTM (Ba et al. 2016, equations 20 to 22).

    Both products are normalised over all gates before they are added, the cell before its tanh;
    `gain_ih`, `gain_hh` [4H] and `gain_c` [H] scale what is normalised, and the biases shift it.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, *, dropout: float
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout=dropout)
        for k in range(num_layers):
            for name, size in (("ih", 4), ("hh", 4), ("c", 1)):
                gain = nn.Parameter(torch.ones(size * hidden_size))
                self.register_parameter(f"gain_{name}_l{k}", gain)
            self.register_parameter(f"bias_c_l{k}", nn.Parameter(torch.zeros(hidden_size)))

    def read(self, k: int, rows: Tensor) -> Tensor:
        """The input's part of the gates, normalised, and both biases: [U, 4H]."""
        weight_ih, _, bias_ih, bias_hh = self.all_weights[k]
        return self._normalised(f"ih_l{k}", rows @ weight_ih.t(), bias_ih + bias_hh)

    def cell(
        self, k: int, read: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The LSTM's, on normalised sums."""
        i, f, g, o = (read + self._normalised(f"hh_l{k}", h @ weight_hh.t())).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        shown = self._normalised(f"c_l{k}", c, getattr(self, f"bias_c_l{k}"))
        return o.sigmoid() * shown.tanh(), c

    def _normalised(self, name: str, sums: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(sums, sums.shape[1:], getattr(self, f"gain_{name}"), bias)


class MogrifierLSTM(SteppedLSTM):
    """The mogrifier (Melis et al. 2020): input and state gate each other before the LSTM's step.

    In turn, `rounds` times, x = 2 sigmoid(Q h) * x and h = 2 sigmoid(R x) * h, with matrices of
    their own in each round: `mogrify_0`, `mogrify_2`, ... are Q [E, H], `mogrify_1`, ... R [H, E].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        dropout: float,
        rounds: int = ROUNDS,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout=dropout)
        self.rounds = rounds
        for k in range(num_layers):
            below, hidden = self.layer_sizes(k)
            for number in range(rounds):
                sizes = (hidden, below) if number % 2 else (below, hidden)
                weight = nn.Parameter(torch.empty(sizes).uniform_(-1, 1) * sizes[1] ** -0.5)
                self.register_parameter(f"mogrify_{number}_l{k}", weight)

    def read(self, k: int, rows: Tensor) -> Tensor:
        """The rows themselves: what becomes of them depends on the state."""
        return rows

    def cell(
        self, k: int, read: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The rounds, and the LSTM's step."""
        x = read
        for number in range(self.rounds):
            weight = getattr(self, f"mogrify_{number}_l{k}")
            if number % 2:
                h = 2 * (x @ weight.t()).sigmoid() * h
            else:
                x = 2 * (h @ weight.t()).sigmoid() * x
        weight_ih, _, bias_ih, bias_hh = self.all_weights[k]
        return torch.lstm_cell(x, (h, c), weight_ih, weight_hh, bias_ih, bias_hh)
