"""Calls captured as CUDA graphs, without a trace of the warming up that this takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3  # torch's own advice: libraries choose algorithms and take memory meanwhile


class CapturedCalls:
    """`call(key)` captured for each of `keys`, largest first, in one pool of memory.

    Warming up changes what a call changes: what `state` lists, the optimiser's state and the random
    numbers' are put back afterwards, so that the first replay is the first call. State that the
    optimiser did not have yet is set to 0, which is how torch's optimisers begin. Random numbers
    differ from replay to replay: the generator's offset moves on.
    """

    def __init__(
        self,
        call: Callable[[int], None],
        keys: Sequence[int],
        *,
        state: Callable[[], list[Tensor]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        keys = sorted(set(keys), reverse=True)
        # Detached: a copy with a grad_fn would keep an AccumulateGrad node of the default stream
        # alive, and CUDA refuses to capture a backward that waits for it.
        kept = [(x, x.detach().clone()) for x in (*state(), *_tensors(optimizer))]
        random = torch.cuda.get_rng_state()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for key in keys * WARM_UPS:
                call(key)
                _put_back(kept, optimizer)
        torch.cuda.current_stream().wait_stream(side)
        pool = None
        for key in keys:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=side):
                call(key)
            pool = pool or graph.pool()
            self._graphs[key] = graph
        torch.cuda.set_rng_state(random)

    def __call__(self, key: int) -> None:
        """What the captured call did, anew."""
        self._graphs[key].replay()


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


@torch.no_grad()
def _put_back(kept: Sequence[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    known = {id(tensor) for tensor, _ in kept}
    for tensor, value in kept:
        tensor.copy_(value)
    for tensor in _tensors(optimizer):
        if id(tensor) not in known:
            tensor.zero_()
