"""What suite=lstm runs: a batch of captions, the implementations, and the GEMMs that bound them.

Shapes: B sequences, T longest length, N packed tokens, U distinct rows among them, E input size,
H hidden size. The baseline is torch.nn.LSTM over a PackedSequence, as one writes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from benchmarks.captions import WORDS, steps_of_sequences, word_ranks
from benchmarks.suite import Axes
from benchmarks.timing import Prepared
from captioner.errors import ConfigError
from captioner.models.lstm import LSTM
from captioner.ops import choose_backend, lstm_packed
from captioner.ops.algorithms import Algorithm, fits

BASELINE, PADDED, FUSED, DISTINCT = "torch", "padded", "fused", "fused, distinct tokens"
STEPWISE = "plain"
PERSISTENT = ("persistent", "cluster")  # the other algorithms of "fused" on CUDA
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # whose products may round operands to ten bits of mantissa
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    lengths: str
    dtype: str
    hidden_size: int
    batch_size: int

    @property
    def axes(self) -> Axes:
        """As figures and requirements carry them."""
        sizes: Axes = {"H": self.hidden_size, "B": self.batch_size}
        return {"lengths": self.lengths, "dtype": self.dtype, **sizes}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.axes.items())


@dataclass(frozen=True)
class Case:
    """A cell's batch: token n reads row input_rows[n] of `table`, as words do of an embedding."""

    table: Tensor  # [U, E]
    input_rows: Tensor  # [N] int64
    batch_sizes: Tensor  # [T] int64 on the CPU
    grad_output: Tensor  # [N, H]
    layer: nn.LSTM

    @property
    def rows(self) -> Tensor:
        """The input of every packed token, [N, E]."""
        return self.table[self.input_rows]


def make_case(cell: Cell, *, device: torch.device, seed: int, data_root: str | None = None) -> Case:
    """The batch of `cell`, drawn from `seed`, and a layer with its first weights."""
    hidden, dtype = cell.hidden_size, DTYPES[cell.dtype]
    drawn = steps_of_sequences(cell.lengths, cell.batch_size, seed=seed, data_root=data_root)
    steps = torch.arange(int(drawn.max())).unsqueeze(1)
    batch_sizes = (steps < torch.from_numpy(drawn)).sum(1)
    # B images, of which none is twice, then <bos>, then words.
    images = int(batch_sizes[0])
    ids = torch.from_numpy(word_ranks(int(batch_sizes.sum()), seed=seed))
    ids[:images] = WORDS + 1 + torch.arange(images)
    ids[images : images + int(batch_sizes[1:2].sum())] = WORDS
    distinct, input_rows = ids.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(len(distinct), hidden, generator=generator).to(device, dtype)
    grad_output = torch.randn(len(ids), hidden, generator=generator).to(device, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.LSTM(hidden, hidden).to(device, dtype)
    return Case(table, input_rows.to(device), batch_sizes, grad_output, layer)


@dataclass(frozen=True)
class Layer:
    """The layer by one implementation; the gradient of `forward`'s output is `grad_output`.

    `leaves` are the input and the four weights. `packed` brings an output, and `distinct` the
    input's gradient, into the form that all implementations share: [N, H] and [U, E].
    """

    forward: Callable[[], Tensor]
    grad_output: Tensor
    leaves: tuple[Tensor, ...]
    distinct: Callable[[Tensor], Tensor]
    packed: Callable[[Tensor], Tensor] = lambda output: output

    @property
    def calls(self) -> dict[str, Callable[[], object] | Prepared]:
        """What is timed; the backward alone works on a forward pass of its own, not timed."""
        backward = Prepared(self.forward, self.backward)
        return {FORWARD: self.forward, BACKWARD: backward, BOTH: self.both}

    def backward(self, output: Tensor) -> tuple[Tensor, ...]:
        """The gradients of all leaves."""
        return torch.autograd.grad(output, self.leaves, self.grad_output)

    def both(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Forward and backward: the output and the gradients."""
        output = self.forward()
        return output, self.backward(output)


def _summed(case: Case, rows: Tensor) -> Tensor:
    """Rows [N, E] added up by the table's row [U, E] that each token reads."""
    return torch.zeros_like(case.table, dtype=rows.dtype).index_add(0, case.input_rows, rows)


def _packed(case: Case, module: nn.Module, call: Callable[[Tensor], Tensor]) -> Layer:
    """`call` on the packed rows [N, E], by the weights of `module`."""
    rows = case.rows.requires_grad_()
    leaves = (rows, *module.parameters())
    return Layer(lambda: call(rows), case.grad_output, leaves, partial(_summed, case))


def _torch(case: Case) -> Layer:
    """torch.nn.LSTM on the packed rows as they are."""
    layer, sizes = case.layer, case.batch_sizes
    return _packed(case, layer, lambda rows: layer(PackedSequence(rows, sizes))[0].data)


def _padded(case: Case) -> Layer:
    """torch.nn.LSTM on padded [T, B, E], made beforehand: it also computes the padding."""
    padded, lengths = pad_packed_sequence(PackedSequence(case.rows, case.batch_sizes))
    grad_output, _ = pad_packed_sequence(PackedSequence(case.grad_output, case.batch_sizes))
    steps = torch.arange(len(case.batch_sizes)).unsqueeze(1)
    alive = (steps < lengths).to(case.table.device)
    rows = padded.clone().requires_grad_()
    return Layer(
        forward=lambda: case.layer(rows)[0],
        grad_output=grad_output,
        leaves=(rows, *case.layer.parameters()),
        distinct=lambda gradient: _summed(case, gradient[alive]),
        packed=lambda output: output[alive],
    )


def _own(backend: str, case: Case) -> Layer:
    """This package's LSTM on `backend`."""
    layer = _own_layer(case, backend)
    return _packed(case, layer, lambda rows: layer.forward_packed(rows, case.batch_sizes)[0])


def _distinct(case: Case) -> Layer:
    """The fused call over the distinct rows [U, E]: equal tokens share a product with weight_ih."""
    table = case.table.clone().requires_grad_()
    weights = tuple(_own_layer(case, FUSED).parameters())
    state = table.new_zeros(int(case.batch_sizes[0]), case.layer.hidden_size)
    given = (table, case.batch_sizes, state, state, *weights)
    call = partial(lstm_packed, *given, backend=FUSED, input_rows=case.input_rows)
    return Layer(lambda: call()[0], case.grad_output, (table, *weights), lambda gradient: gradient)


def _own_layer(case: Case, backend: str) -> LSTM:
    size, table = case.layer.hidden_size, case.table
    layer = LSTM(size, size, backend=backend, device=table.device, dtype=table.dtype)
    layer.load_state_dict(case.layer.state_dict())
    return layer


IMPLEMENTATIONS: dict[str, Callable[[Case], Layer]] = {
    "reference": partial(_own, "reference"),
    BASELINE: _torch,
    PADDED: _padded,
    FUSED: partial(_own, FUSED),
    DISTINCT: _distinct,
    **{name: partial(_own, name) for name in (STEPWISE, *PERSISTENT)},
}


def why_absent(name: str, device: torch.device) -> str | None:
    """Why an implementation cannot run in this installation, or None."""
    backend = FUSED if name == DISTINCT else name
    if backend in (FUSED, STEPWISE, *PERSISTENT):
        try:
            choose_backend(backend, device.type)
        except ConfigError as error:
            return str(error)
    return None


def takes(name: str, cell: Cell, device: torch.device) -> bool:
    """Whether an implementation that is there can run on a cell: weights have to fit the GPU's
    registers, and tensor cores know no strict float32."""
    if name not in PERSISTENT or cell.dtype in ("float32", "float64"):
        return name not in PERSISTENT
    hidden, dtype = cell.hidden_size, DTYPES[cell.dtype]
    weight = torch.empty(4 * hidden, hidden, device=device, dtype=dtype)
    return fits(weight, cell.batch_size, Algorithm[name])


def gemms(case: Case) -> dict[str, Callable[[], object]]:
    """The layer's GEMMs, each once over all tokens, into tensors made beforehand.

    Forward x W_ih' and h W_hh'; backward dG W_ih, dG W_hh, dG' x and dG' h.
    """
    x, h = case.rows, case.grad_output
    weight_ih, weight_hh = (weight.detach() for weight in case.layer.all_weights[0][:2])
    gates = torch.randn(len(x), 4 * case.layer.hidden_size).to(x)
    out_gates, out_rows = torch.empty_like(gates), torch.empty_like(x)
    out_weight = torch.empty_like(weight_ih)

    def forward() -> Tensor:
        torch.mm(x, weight_ih.t(), out=out_gates)
        return torch.mm(h, weight_hh.t(), out=out_gates)

    def backward() -> Tensor:
        torch.mm(gates, weight_ih, out=out_rows)
        torch.mm(gates, weight_hh, out=out_rows)
        torch.mm(gates.t(), x, out=out_weight)
        return torch.mm(gates.t(), h, out=out_weight)

    return {FORWARD: forward, BACKWARD: backward, BOTH: lambda: (forward(), backward())}
