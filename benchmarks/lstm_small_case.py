"""A small ragged batch through the fused LSTM, for a sanitizer, or a larger one for a profiler.

`python -m benchmarks.lstm_small_case DEVICE DTYPE[:BACKEND[:MODELS]]...` fails where a result is
not the reference's, of one model or of several in one launch; without arguments it is a batch of
captions through the persistent kernels on a GPU: E = H = 512, B = 64.
"""

import sys

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from benchmarks.lstm import TOLERANCE
from benchmarks.lstm_implementations import (
    DTYPES,
    IMPLEMENTATIONS,
    PERSISTENT,
    Cell,
    make_case,
    takes,
)
from benchmarks.suite import float32_products
from captioner.models.lstm import LSTM

BATCH_SIZES = (5, 5, 3, 2, 2, 1)
INPUT_SIZE, HIDDEN_SIZE = 40, 64


def run_small_case(
    device: str, dtype: str, *, backend: str = "fused", models: int | None = None
) -> float:
    """The largest difference of output and gradients to the reference, to the largest value."""
    torch.manual_seed(0)
    twin = LSTM(INPUT_SIZE, HIDDEN_SIZE, backend="reference").to(device, DTYPES[dtype])
    layer = LSTM(INPUT_SIZE, HIDDEN_SIZE, backend=backend).to(device, DTYPES[dtype])
    layer.load_state_dict(twin.state_dict())
    drawn = torch.randn(sum(BATCH_SIZES), INPUT_SIZE).to(device, DTYPES[dtype])
    leading = () if models is None else (models,)
    shape = (*leading, sum(BATCH_SIZES), HIDDEN_SIZE)
    grad_output = torch.randn(shape).to(device, DTYPES[dtype])
    found = []
    with float32_products(tf32=dtype == "tf32"):
        for module in (layer, twin):
            rows = drawn.clone().requires_grad_()
            output, weights = _run(module, rows, models)
            found.append(
                (output.detach(), *torch.autograd.grad(output, (rows, *weights), grad_output))
            )
    pairs = [(a.double(), b.double()) for a, b in zip(*found, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _run(module: LSTM, rows: Tensor, models: int | None) -> tuple[Tensor, list[Tensor]]:
    """The layer's output [N, H] and its weights; of K models, whose weights differ, with a leading
    K."""
    sizes = torch.tensor(BATCH_SIZES)
    if models is None:
        return module.forward_packed(rows, sizes)[0], [*module.parameters()]
    factors = [1 + k / 8 for k in range(models)]
    weights = {
        name: torch.stack([factor * one.detach() for factor in factors]).requires_grad_()
        for name, one in module.named_parameters()
    }

    def of_model(own: dict[str, Tensor]) -> Tensor:
        packed = PackedSequence(rows, sizes)
        output: Tensor = torch.func.functional_call(module, own, (packed,))[0].data
        return output

    return torch.vmap(of_model)(weights), [*weights.values()]


def run_captions() -> None:
    """Forward and backward of each persistent algorithm that the GPU holds."""
    device, cell = torch.device("cuda"), Cell("flickr8k", "bfloat16", 512, 64)
    case = make_case(cell, device=device, seed=0)
    for name in PERSISTENT:
        if takes(name, cell, device):
            IMPLEMENTATIONS[name](case).both()
    torch.cuda.synchronize()


def main(device: str = "", *cases: str) -> int:
    """Run each type and backend; 1 where one is apart from the reference."""
    if not device:
        run_captions()
    wrong = False
    for case in cases:
        dtype, backend, models = [*case.split(":"), "", ""][:3]
        cell = Cell("ragged", dtype, HIDDEN_SIZE, BATCH_SIZES[0])
        if not takes(backend, cell, torch.device(device)):
            print(f"{case}: not on this device")
            continue
        several = int(models) if models else None
        apart = run_small_case(device, dtype, backend=backend or "fused", models=several)
        print(f"{case}: {apart:.3g} of the largest value apart, at most {TOLERANCE[dtype]:g}")
        wrong |= not apart <= TOLERANCE[dtype]
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
