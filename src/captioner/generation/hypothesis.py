"""What generation takes and gives: the step function, its state, and hypotheses.

Shapes: N rows given to the step (images times beams or samples), B images, K hypotheses an image, T
longest length, V vocabulary, L layers, H hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from captioner.errors import ConfigError

State: TypeAlias = Any
"""Any pytree of tensors whose dim 1 is the batch: an LSTM's (h, c), each [L, N, H]."""

Step: TypeAlias = Callable[[Tensor, State], tuple[Tensor, State]]
"""step(token_ids [N], state) -> (log_probs [N, V], state): all that generation knows of a model."""


@dataclass(frozen=True)
class Hypothesis:
    """One generated sentence.

    `token_ids` leaves out bos and eos; `log_probs` holds the model's log-probability (nats) of each
    token, the eos's included when `finished`; `score` is their sum over length ** length_penalty,
    the length counting that eos.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    finished: bool


def state_device(state: State) -> torch.device:
    """Return the device of the state's first tensor; the CPU when it holds none."""
    tensors = (leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def select_rows(state: State, rows: Tensor) -> State:
    """Return the state of the given rows [M], in that order: reorders beams, drops the finished."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.index_select(1, rows), state)


def repeat_rows(state: State, batch_size: int, times: int) -> State:
    """Return the state with each row `times` times in succession; ConfigError if not B rows."""

    def repeat(leaf: Tensor) -> Tensor:
        if leaf.dim() < 2 or leaf.shape[1] != batch_size:
            raise ConfigError(
                f"every tensor of the state must have the batch, {batch_size}, as its dim 1, "
                f"got shape {list(leaf.shape)}"
            )
        return leaf.repeat_interleave(times, dim=1)

    return pytree.tree_map_only(Tensor, repeat, state)
