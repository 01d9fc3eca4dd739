"""The readable twin of attention.py: one sequence after another, one token at a time.

The tests compare the two in float64. Formulas as in attention.py; weights are those of the modules.

Letters: I images, B sequences, T longest length, R regions, F width of a region, N packed tokens, D
width of a query, S width of a sentinel, A attention, A' width of a value, h heads.
"""

import torch
from torch import Tensor

from captioner.models.attention import AdditiveAttention, MultiHeadAttention
from captioner.ops.packing import packed_places

Attention = MultiHeadAttention | AdditiveAttention


def attend(
    attention: Attention,
    queries: Tensor,  # [N, D] packed
    regions: Tensor,  # [I, R, F]
    batch_sizes: Tensor,  # [T] on the CPU
    image_rows: Tensor,  # [B] the image of each sequence
    sentinels: Tensor | None = None,  # [N, S]
) -> tuple[Tensor, Tensor]:
    """Contexts [N, A'] and attention maps [N, R], or [N, R + 1], without dropout."""
    one_token = _multi_head if isinstance(attention, MultiHeadAttention) else _additive
    contexts: dict[int, Tensor] = {}
    maps: dict[int, Tensor] = {}
    _, sequence_of_row, _ = packed_places(batch_sizes, len(queries))
    for sequence in range(len(image_rows)):
        own = regions[int(image_rows[sequence])]
        for row in (sequence_of_row == sequence).nonzero().flatten().tolist():
            sentinel = None if sentinels is None else sentinels[row]
            contexts[row], maps[row] = one_token(attention, queries[row], own, sentinel)  # type: ignore[arg-type]
    rows = range(len(queries))
    return torch.stack([contexts[k] for k in rows]), torch.stack([maps[k] for k in rows])


def _multi_head(
    attention: MultiHeadAttention, query: Tensor, regions: Tensor, sentinel: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Context [A] and map of a query [D] over regions [R, F]."""
    q, keys, values = attention.query(query), attention.key(regions), attention.value(regions)
    if sentinel is not None:
        keys = torch.cat([keys, attention.sentinel_key(sentinel)[None]])
        values = torch.cat([values, attention.sentinel_value(sentinel)[None]])
    width = len(q) // attention.heads
    contexts, weights = [], []
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        alpha = (keys[:, part] @ q[part] / width**0.5).softmax(dim=0)
        contexts.append(alpha @ values[:, part])
        weights.append(alpha)
    return torch.cat(contexts), torch.stack(weights).mean(0)


def _additive(
    attention: AdditiveAttention, query: Tensor, regions: Tensor, sentinel: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Context [F] and map of a query [D] over regions [R, F]."""
    keys, values = attention.key(regions), regions
    if sentinel is not None:
        keys = torch.cat([keys, attention.sentinel_key(sentinel)[None]])
        values = torch.cat([values, sentinel[None]])
    scores = (attention.query(query) + keys).tanh() @ attention.score.weight[0]
    alpha = scores.softmax(dim=0)
    return alpha @ values, alpha
