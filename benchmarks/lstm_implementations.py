"""The implementations that suite=lstm measures, and the roofline that bounds them all.

Shapes: B sequences, T longest length, N packed tokens, U distinct rows among them, E input size,
H hidden size.

An entry of IMPLEMENTATIONS makes a `Layer` from a `Case`. The baseline is torch.nn.LSTM over a
PackedSequence, as one writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from benchmarks.lstm_case import DTYPES, Case, Cell
from captioner.errors import ConfigError
from captioner.models.lstm import LSTM
from captioner.ops import choose_backend, lstm_packed
from captioner.ops.algorithms import Algorithm, fits

BASELINE, PADDED, FUSED, DISTINCT = "torch", "padded", "fused", "fused, distinct tokens"
STEPWISE = "plain"
PERSISTENT = ("persistent", "cluster")  # the other algorithms of "fused" on CUDA
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"


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
    return _packed(
        case, case.layer, lambda rows: case.layer(PackedSequence(rows, case.batch_sizes))[0].data
    )


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
    state = table.new_zeros(int(case.batch_sizes[0]), case.hidden_size)
    given = (table, case.batch_sizes, state, state, *weights)
    call = partial(lstm_packed, *given, backend=FUSED, input_rows=case.input_rows)
    return Layer(lambda: call()[0], case.grad_output, (table, *weights), lambda gradient: gradient)


def _own_layer(case: Case, backend: str) -> LSTM:
    size, table = case.hidden_size, case.table
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
    if name in (FUSED, DISTINCT, STEPWISE, *PERSISTENT):
        try:
            choose_backend(FUSED if name == DISTINCT else name, device.type)
        except ConfigError as error:
            return str(error)
    return None


def takes(name: str, cell: Cell, device: torch.device) -> bool:
    """Whether an implementation that is there can run on a cell: weights have to fit the GPU's
    registers, and tensor cores know no strict float32."""
    if name not in PERSISTENT:
        return True
    if cell.dtype not in ("bfloat16", "float16", "tf32"):
        return False
    hidden, dtype = cell.hidden_size, DTYPES[cell.dtype]
    weight = torch.empty(4 * hidden, hidden, device=device, dtype=dtype)
    return fits(weight, cell.batch_size, Algorithm[name])


def gemms(case: Case) -> dict[str, Callable[[], object]]:
    """The layer's GEMMs, each once over all tokens, into tensors made beforehand.

    Forward x W_ih' and h W_hh'; backward dG W_ih, dG W_hh, dG' x and dG' h.
    """
    x, h = case.rows, case.grad_output
    weight_ih, weight_hh = (weight.detach() for weight in case.layer.all_weights[0][:2])
    gates = torch.randn(case.tokens, 4 * case.hidden_size).to(x)
    out_gates, out_rows = torch.empty_like(gates), torch.empty_like(x)
    out_weight = torch.empty_like(weight_ih)

    def forward() -> None:
        torch.mm(x, weight_ih.t(), out=out_gates)
        torch.mm(h, weight_hh.t(), out=out_gates)

    def backward() -> None:
        torch.mm(gates, weight_ih, out=out_rows)
        torch.mm(gates, weight_hh, out=out_rows)
        torch.mm(gates.t(), x, out=out_weight)
        torch.mm(gates.t(), h, out=out_weight)

    def both() -> None:
        forward()
        backward()

    return {FORWARD: forward, BACKWARD: backward, BOTH: both}
