"""A task that needs only memory: repeat the first symbol after a delay full of others.

After Hochreiter & Schmidhuber (1997), experiment 2. Shapes: B sequences, T = delay + 2 steps,
S symbols to remember, D others between (the distractors), and the cue that asks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.models.language_model import LanguageModel, initialise
from captioner.training.optimisation import clip_gradients

SYMBOLS, DISTRACTORS = 8, 8
CUE = SYMBOLS + DISTRACTORS
BATCH = 64


def copy_batch(size: int, delay: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs [T, B]: a symbol, `delay` distractors, the cue; and the symbols to repeat [B]."""
    symbols = torch.randint(SYMBOLS, (1, size), generator=generator)
    between = torch.randint(SYMBOLS, CUE, (delay, size), generator=generator)
    return torch.cat([symbols, between, torch.full((1, size), CUE)]), symbols[0]


def learn_to_copy(
    kind: str,
    *,
    delay: int,
    steps: int,
    hidden_size: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    scheme: str = "uniform",
    forget_bias: float = 1.0,
) -> list[float]:
    """Train a network of that kind; the share of symbols it repeated right at each step.

    Every batch is new, so this is the accuracy on unseen sequences; chance is 1 / 8.
    """
    torch.manual_seed(seed)
    model = LanguageModel(
        vocab_size=CUE + 1, embedding_dim=hidden_size, hidden_size=hidden_size, kind=kind
    )
    initialise(model, scheme=scheme, scale=hidden_size**-0.5, forget_bias=forget_bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.full((delay + 2,), BATCH)
    right = []
    for _ in range(steps):
        inputs, symbols = copy_batch(BATCH, delay, generator)
        logits = model(inputs.flatten(), sizes)[0][-BATCH:, :SYMBOLS]
        optimizer.zero_grad()
        F.cross_entropy(logits, symbols).backward()
        clip_gradients(model.parameters(), norm=1.0, value=None)
        optimizer.step()
        right.append(float((logits.argmax(1) == symbols).float().mean()))
    return right
