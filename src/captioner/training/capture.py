"""Calls captured as CUDA graphs; nothing is left of the warm-up calls that this takes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3  # torch's own advice: libraries choose algorithms and allocate workspaces meanwhile


class CapturedCalls:
    """`call(key)` captured for each of `keys`, largest first, in one memory pool.

    Warm-up calls change what a call changes: the tensors in `state`, the state of `optimizers` and
    of torch's generator and `generators` are restored, so that the first replay is the first call.
    State that an optimiser did not have yet is set to 0, as torch's optimisers begin. Random
    numbers differ from replay to replay: a generator's offset moves on.
    """

    def __init__(
        self,
        call: Callable[[int], None],
        keys: Sequence[int],
        *,
        state: Sequence[Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        keys = sorted(set(keys), reverse=True)
        # Detached: a copy with a grad_fn would keep an AccumulateGrad node of the default stream
        # alive, and CUDA refuses to capture a backward that waits for it.
        kept = [(x, x.detach().clone()) for x in (*state, *_tensors(optimizers))]
        random = torch.cuda.get_rng_state(), [one.get_state() for one in generators]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for key in keys * WARM_UPS:
                call(key)
                _restore(kept, optimizers)
        torch.cuda.current_stream().wait_stream(stream)
        pool = None
        for key in keys:
            graph = torch.cuda.CUDAGraph()
            for generator in generators:  # torch's own is known to every graph
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                call(key)
            pool = pool or graph.pool()
            self._graphs[key] = graph
        torch.cuda.set_rng_state(random[0])
        for generator, before in zip(generators, random[1], strict=True):
            generator.set_state(before)

    def __call__(self, key: int) -> None:
        """Replay the call."""
        self._graphs[key].replay()


def _tensors(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


@torch.no_grad()
def _restore(
    kept: Sequence[tuple[Tensor, Tensor]], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    known = {id(tensor) for tensor, _ in kept}
    for tensor, value in kept:
        tensor.copy_(value)
    for tensor in _tensors(optimizers):
        if id(tensor) not in known:
            tensor.zero_()
