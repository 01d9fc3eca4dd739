"""suite=windows: embedding and LSTM on windows of a text, all lengths equal, beside nn.LSTM.

Shapes: B streams, T window length, N = B * T tokens, V characters, H hidden size (= embedding
size), L layers. "shared" is what the language model runs where its input has no dropout: a
character's product with the first layer's weights is computed once a window.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.settings import WindowsBenchmark
from benchmarks.suite import Axes, Run, SuiteResult
from benchmarks.timing import interleaved, paired_ratio
from captioner.models.lstm import LSTM
from captioner.ops import choose_backend

BASELINE, SHARED = "nn.LSTM", "shared"
CHARACTERS = 65  # as tiny Shakespeare has
WHAT = "forward and backward"


def windows_suite(settings: WindowsBenchmark, run: Run) -> SuiteResult:
    """Milliseconds of forward and backward, and their ratio, for every size."""
    backend = choose_backend("auto", run.device.type)
    result = SuiteResult({"backend": backend, "dtype": "float32", "V": CHARACTERS})
    window, num_layers = settings.window, settings.num_layers
    for hidden, batch in itertools.product(settings.hidden_sizes, settings.batch_sizes):
        axes: Axes = {"B": batch, "T": window, "H": hidden, "L": num_layers}
        torch.manual_seed(run.seed)
        calls = make_calls(batch, window, hidden, num_layers, backend, run.device)
        taken = interleaved(calls, repeats=run.repeats, device=run.device, warmup=2)
        for name, spread in taken.items():
            result.add(WHAT, name, "ms", spread.map(lambda value: 1000 * value), axes)
        promised = (batch, window, hidden, num_layers) == (64, 64, 512, 2)
        for name in (backend, SHARED):
            faster = name == SHARED and promised and run.device.type == "cpu"
            what, speed = f"{WHAT}, speed of {name} to", paired_ratio(taken[BASELINE], taken[name])
            asked = 1.3 if faster else 1.0
            result.require(f"{what} {BASELINE}", "times", speed, at_least=asked, axes=axes)
    return result


def make_calls(
    batch: int, window: int, hidden: int, num_layers: int, backend: str, device: torch.device
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Each call gives the gradients of embedding and weights; all carry the same state in."""
    baseline = nn.LSTM(hidden, hidden, num_layers).to(device)
    mine = LSTM(hidden, hidden, num_layers, backend=backend, device=device)
    mine.load_state_dict(baseline.state_dict())
    table = torch.randn(CHARACTERS, hidden, device=device, requires_grad=True)
    ids = torch.randint(CHARACTERS, (window * batch,), device=device)
    grad = torch.randn(window, batch, hidden, device=device)
    h, c = torch.randn(2, num_layers, batch, hidden, device=device)
    sizes = torch.full((window,), batch)

    def by_baseline() -> tuple[Tensor, ...]:
        output, _ = baseline(F.embedding(ids, table).view(window, batch, hidden), (h, c))
        return torch.autograd.grad(output, (table, *baseline.parameters()), grad)

    def by_rows(ids: Tensor = ids, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        output, _ = mine.forward_packed(F.embedding(ids, table), sizes, (h, c), input_rows=rows)
        return torch.autograd.grad(output, (table, *mine.parameters()), grad.flatten(0, 1))

    def shared() -> tuple[Tensor, ...]:
        return by_rows(*ids.unique(return_inverse=True))

    return {BASELINE: by_baseline, backend: by_rows, SHARED: shared}
