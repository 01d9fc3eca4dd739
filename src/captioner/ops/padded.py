"""torch's own LSTM over a batch with static shapes, by padding: nothing synchronises with the host.

Shapes: B sequences and N packed tokens as capacities, T steps, E input size, H hidden size.

cuDNN takes the lengths of packed sequences from the host, so a CUDA graph would keep those of its
capture. Padded it needs none: tokens are moved to [T, B, E] by an index that is computed on the
device, and back. What lies beyond a sequence's end is computed but reaches no result.
"""

import torch
from torch import Tensor

from captioner.ops.packing import packed_places


def lstm_with_capacity(
    rows: Tensor,  # [N, E]
    batch_sizes: Tensor,  # [T] int64
    hx: Tensor,  # [B, H]
    cx: Tensor,  # [B, H]
    weights: list[Tensor],  # weight_ih [4H, E], weight_hh [4H, H], bias_ih [4H], bias_hh [4H]
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [N, H] and hy [B, H] as `lstm_packed` with capacity gives them.

    cy [B, H] is NaN for sequences of less than T steps, whose cells torch does not tell.
    """
    (batch, hidden), steps = hx.shape, len(batch_sizes)
    step, sequence, filled = packed_places(batch_sizes, len(rows))
    # The row of [T * B] for each packed row; padding rows all go to one more row at the end.
    target = torch.where(filled, step * batch + sequence, steps * batch)
    padded = rows.new_zeros(steps * batch + 1, rows.shape[1]).index_copy(0, target, rows)
    train = torch.is_grad_enabled()  # cuDNN refuses a backward of what did not run in training mode
    output, _, cells = torch._VF.lstm(
        padded[:-1].view(steps, batch, -1),
        (hx[None], cx[None]),
        weights,
        *(True, 1, 0.0, train, False, False),
    )
    reached = torch.cat([output.reshape(steps * batch, hidden), output.new_zeros(1, hidden)])
    row = torch.arange(batch, device=rows.device)
    lengths = (batch_sizes.unsqueeze(1) > row).sum(0)  # [B]
    last = ((lengths - 1).clamp(min=0) * batch + row).clamp(max=steps * batch)
    lengths = lengths.unsqueeze(1)
    hy = torch.where(lengths > 0, reached.index_select(0, last), hx)
    cy = torch.where(lengths == steps, cells[0], torch.nan)
    return reached.index_select(0, target), hy, cy
