"""The emulated CUDA operator, its arguments, and torch.nn.LSTM in float64 beside it.

Shapes: B sequences, T longest, N packed tokens, U rows of input, E input size, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Emulated = Any  # tests/ops/conftest.py makes it
LAYOUTS = {
    "ragged": [4, 4, 2, 1, 1],
    "all of length one": [5],
    "all equal": [3, 3, 3],
    "one sequence": [1, 1, 1, 1],
    "one token": [1],
    "long outlier": [3] + [1] * 30,
}
FLOATS = ["input", "hx", "cx", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
GRADIENTS = ["input", "hx", "cx", "weight_ih", "weight_hh", "bias_ih"]
RESULTS = ["output", "hy", "cy", *GRADIENTS]
SHARED = ("batch_sizes", "input_rows")  # by all models
Arguments = dict[str, Tensor]


def draw(
    sizes: list[int],
    *,
    hidden: int = 5,
    dtype: torch.dtype = torch.float64,
    rows: int | None = None,
    inputs: int = 3,
    seed: int = 0,
) -> Arguments:
    """Arguments and gradients of the outputs; with `rows`, that many of input and input_rows."""
    generator = torch.Generator().manual_seed(len(sizes) + 1000 * seed)
    tokens, batch = sum(sizes), sizes[0]
    states = dict.fromkeys(("hx", "cx", "grad_hy", "grad_cy"), (batch, hidden))
    shapes = {
        "input": (tokens if rows is None else rows, inputs),
        **{name: states[name] for name in ("hx", "cx")},
        "weight_ih": (4 * hidden, inputs),
        "weight_hh": (4 * hidden, hidden),
        **dict.fromkeys(("bias_ih", "bias_hh"), (4 * hidden,)),
        "grad_output": (tokens, hidden),
        **{name: states[name] for name in ("grad_hy", "grad_cy")},
    }
    drawn = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    drawn["weight_hh"] /= hidden**0.5  # else the recurrence is chaotic and tells nothing
    drawn = {name: x.to(dtype) for name, x in drawn.items()}
    drawn["batch_sizes"] = torch.tensor(sizes)
    if rows is not None:  # the last row of input stays unread
        drawn["input_rows"] = torch.randint(max(rows - 1, 1), (tokens,), generator=generator)
    return drawn


def draw_models(count: int, sizes: list[int], **settings: Any) -> tuple[Arguments, list[Arguments]]:
    """Arguments of K models, with a leading K, and of each; input times weight_ih is exact."""
    models = [draw(sizes, seed=k, **settings) for k in range(count)]
    for own in models:
        own |= {name: own[name].round().clamp(-2, 2) for name in ("input", "weight_ih")}
        own |= {name: models[0][name] for name in SHARED if name in own}
    stacked = {name: torch.stack([own[name] for own in models]) for name in models[0]}
    return stacked | {name: models[0][name] for name in SHARED if name in stacked}, models


def of_model(found: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """The results of model k."""
    return {name: value[k] for name, value in found.items()}


def run(
    emulated: Emulated, x: Arguments, *, capacity: bool = False, algorithm: int = 0
) -> dict[str, Tensor]:
    """Outputs and gradients of the emulated operators, by name."""
    head = (x["input"], x["batch_sizes"], x["hx"], x["cx"], x["weight_ih"], x["weight_hh"])
    rows, switches = x.get("input_rows"), (capacity, algorithm)
    outputs = emulated.ops.lstm_packed(*head, x["bias_ih"], x["bias_hh"], rows, *switches)
    gradients = emulated.ops.lstm_packed_backward(
        *(x[name] for name in ("grad_output", "grad_hy", "grad_cy")),
        *head,
        *(outputs[0], outputs[3], rows, True),
        *switches,
    )
    return dict(zip(RESULTS, (*outputs[:3], *gradients), strict=True))


def torch_lstm(x: Arguments) -> dict[str, Tensor]:
    """The same of torch.nn.LSTM in float64."""
    leaves = {name: x[name].detach().double().requires_grad_() for name in FLOATS}
    module = nn.LSTM(x["input"].shape[1], x["hx"].shape[1], dtype=torch.float64)
    weights = {f"{name}_l0": leaves[name] for name in FLOATS[3:]}
    tokens = leaves["input"][x["input_rows"]] if "input_rows" in x else leaves["input"]
    output, (hy, cy) = torch.func.functional_call(
        module,
        weights,
        (PackedSequence(tokens, x["batch_sizes"]), (leaves["hx"][None], leaves["cx"][None])),
    )
    outputs = (output.data, hy[0], cy[0])
    gradients = torch.autograd.grad(
        outputs,
        [leaves[name] for name in GRADIENTS],
        [x[name].double() for name in ("grad_output", "grad_hy", "grad_cy")],
    )
    return dict(zip(RESULTS, (*(out.detach() for out in outputs), *gradients), strict=True))
