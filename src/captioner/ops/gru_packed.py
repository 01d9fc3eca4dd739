"""`gru_packed`: one GRU layer in one direction over packed sequences.

Shapes: B sequences, T longest length, N packed tokens, U rows of input, E input size, H hidden
size.

On a CPU the operator `captioner::gru_packed` of csrc/ computes it as lstm_packed does the LSTM,
with the weights packed once for all steps; elsewhere it is torch's GRU, or cuDNN's.
"""

import torch
from torch import Tensor

from captioner.ops.backend import choose_backend
from captioner.ops.checks import check_index, check_like, refuse_double_backward
from captioner.ops.extension import ABSENT


def gru_packed(
    input: Tensor,  # [U, E]
    batch_sizes: Tensor,  # [T] int64 on the CPU
    hx: Tensor,  # [B, H]
    weight_ih: Tensor,  # [3H, E]
    weight_hh: Tensor,  # [3H, H]
    bias_ih: Tensor,  # [3H]
    bias_hh: Tensor,  # [3H]
    *,
    input_rows: Tensor | None = None,  # [N] int64
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One layer of torch.nn.GRU over packed sequences: output [N, H] and hy [B, H].

    Gates in the order r, z, n; the reset gate acts on the state's product. Rows as in
    `lstm_packed`: token n reads row input_rows[n] of `input`, or row n. `backend`: "auto" and
    "fused" take the compiled operator for float32 and float64 on a CPU; everything else is torch's.
    Raises ValueError naming the tensor, what it is and what it should be, ConfigError for a backend
    that is unknown or not built.
    """
    _check(input, batch_sizes, hx, weight_ih, weight_hh, bias_ih, bias_hh, input_rows)
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    if _is_compiled(input, backend):
        operator = torch.ops.captioner.gru_packed
        output, hy, _ = operator(input, batch_sizes, hx, *weights, input_rows)
        return output, hy
    rows = input if input_rows is None else input[input_rows]
    train = torch.is_grad_enabled()  # cuDNN has no backward for what ran in inference mode
    state = hx[None].to(rows.dtype)
    output, hy = torch._VF.gru(rows, batch_sizes, state, weights, True, 1, 0.0, train, False)
    return output, hy[0]


def _is_compiled(input: Tensor, backend: str) -> bool:
    device_type = input.device.type
    if choose_backend(backend, device_type) != "fused" or device_type != "cpu":
        return False
    return input.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")


def _check(
    input: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    input_rows: Tensor | None,
) -> None:
    if input.dim() != 2 or weight_hh.dim() != 2:
        raise ValueError(
            f"input must be [U, E] and weight_hh [3H, H], got {list(input.shape)} "
            f"and {list(weight_hh.shape)}"
        )
    hidden = weight_hh.shape[1]
    expected = {
        "hx": (hx, "[B, H]", (hx.shape[0], hidden)),
        "weight_ih": (weight_ih, "[3H, E]", (3 * hidden, input.shape[1])),
        "weight_hh": (weight_hh, "[3H, H]", (3 * hidden, hidden)),
        "bias_ih": (bias_ih, "[3H]", (3 * hidden,)),
        "bias_hh": (bias_hh, "[3H]", (3 * hidden,)),
    }
    check_like(expected, "input", input, dtype=not torch.is_autocast_enabled(input.device.type))
    check_index("batch_sizes", "[T] of int64", batch_sizes, torch.device("cpu"), 1, "the CPU")
    if input_rows is not None:
        check_index("input_rows", "[N] of int64", input_rows, input.device)


def _register() -> None:
    """Fake kernels and autograd of the operator and of its backward."""

    def fake(input, batch_sizes, hx, weight_ih, weight_hh, bias_ih, bias_hh, input_rows=None):  # type: ignore[no-untyped-def]
        tokens, hidden = len(input) if input_rows is None else len(input_rows), weight_hh.shape[1]
        return (
            input.new_empty(tokens, hidden),
            hx.new_empty(hx.shape),
            input.new_empty(tokens, 4 * hidden),
        )

    def fake_backward(  # type: ignore[no-untyped-def]
        grad_output,
        grad_hy,
        input,
        batch_sizes,
        hx,
        weight_ih,
        weight_hh,
        output,
        workspace,
        input_rows=None,
        wants_hx=True,
    ):
        of_bias = (weight_hh.new_empty(len(weight_hh)), weight_hh.new_empty(len(weight_hh)))
        return *(x.new_empty(x.shape) for x in (input, hx, weight_ih, weight_hh)), *of_bias

    def save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        input, batch_sizes, hx, weight_ih, weight_hh, _, _, input_rows = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        saved = (input, batch_sizes, hx, weight_ih, weight_hh, output[0], output[2], input_rows)
        ctx.save_for_backward(*saved)

    def gradients(ctx, grad_output, grad_hy, _grad_workspace):  # type: ignore[no-untyped-def]
        output, hx = ctx.saved_tensors[5], ctx.saved_tensors[2]
        wanted = [
            torch.zeros_like(x) if grad is None else grad
            for grad, x in ((grad_output, output), (grad_hy, hx))
        ]
        of_input, of_hx, *others = torch.ops.captioner.gru_packed_backward(
            *wanted, *ctx.saved_tensors, ctx.needs_input_grad[2]
        )
        return of_input, None, of_hx, *others, None

    name = "captioner::gru_packed"
    torch.library.register_fake(name, fake)
    torch.library.register_fake(f"{name}_backward", fake_backward)
    torch.library.register_autograd(name, gradients, setup_context=save)
    refuse_double_backward(f"{name}_backward", "for a double backward take backend='torch'")


if ABSENT is None:
    _register()
