"""Dynamic evaluation (Krause et al. 2018, Dynamic Evaluation of Neural Sequence Models): a language
model goes on learning from the text that it is scored on.

Every segment is scored before the weights are changed by its gradient, so no token is predicted by
a model that has seen it. Such a figure is not comparable with one of fixed weights.

Shapes: T tokens of a segment.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captioner.models.language_model import LanguageModel
from captioner.models.stream import StreamModel
from captioner.validation.text import Losses, window_losses

STATISTICS_SEGMENTS, PLACES = 1000, 20  # of the training text at most, and where they begin
EPSILON = 1e-3  # added to the root of the mean squares, relative to their mean over all weights


@dataclass(frozen=True)
class DynamicEvaluation:
    """The update after each segment of `window` tokens: with the gradient g of its mean loss, and
    the root r of the mean of squared gradients over segments of the training text,

        w <- w - lr * g / (r / mean(r) + epsilon) + min(1, decay * r / mean(r)) * (w_trained - w)

    the RMS rule with decay towards the trained weights of Krause et al. (2018, equations 7 and 8),
    with r relative to its mean over all weights in both terms: `lr` then has the scale of plain
    SGD's.
    """

    window: int
    lr: float
    decay: float

    def losses(
        self, model: LanguageModel, tokens: np.ndarray, *, training: np.ndarray, bos: int
    ) -> Losses:
        """Targets and losses of `tokens`, segment after segment; `training`: tokens of the training
        text. A copy of the model learns, `model` stays as it is."""
        learner = copy.deepcopy(model).eval()
        weights = [*learner.parameters()]
        trained = [weight.detach().clone() for weight in weights]
        scales = _relative_scales(learner, training, bos=bos, window=self.window)
        steps = [self.lr / (scale + EPSILON) for scale in scales]
        decays = [(self.decay * scale).clamp(max=1) for scale in scales]
        for targets, losses in _segments(learner, tokens, bos=bos, window=self.window):
            gradients = torch.autograd.grad(losses.mean(), weights)
            with torch.no_grad():
                for weight, gradient, step, decay, kept in zip(
                    weights, gradients, steps, decays, trained, strict=True
                ):
                    back = decay * (kept - weight)
                    weight.addcmul_(step, gradient, value=-1).add_(back)
            yield targets, losses.detach().cpu()


def _segments(model: LanguageModel, tokens: np.ndarray, *, bos: int, window: int) -> Losses:
    """Losses with their gradient, by the weights as they are when a segment is asked for."""
    reader = StreamModel(model)
    for start in range(0, len(tokens) - 1, window):
        part = tokens[start : start + window + 1]
        yield window_losses(reader, part, bos=bos, fresh=start == 0)


def _relative_scales(
    model: LanguageModel, training: np.ndarray, *, bos: int, window: int
) -> list[Tensor]:
    """The root of the mean square of each weight's gradient over segments of the training text, the
    mean over all weights being 1."""
    weights = [*model.parameters()]
    squares = [torch.zeros_like(weight) for weight in weights]
    for part in _places(training, window):
        for _, losses in _segments(model, part, bos=bos, window=window):
            gradients = torch.autograd.grad(losses.mean(), weights)
            for square, gradient in zip(squares, gradients, strict=True):
                square.addcmul_(gradient, gradient)
    roots = [square.sqrt() for square in squares]
    mean = sum(float(root.sum()) for root in roots) / sum(root.numel() for root in roots)
    return [root / max(mean, torch.finfo(root.dtype).tiny) for root in roots]


def _places(training: np.ndarray, window: int) -> Iterator[np.ndarray]:
    """Passages of the training text, from its beginning to its end, of `STATISTICS_SEGMENTS`, or
    the whole of a short one about once."""
    length = STATISTICS_SEGMENTS // PLACES * window + 1
    count = min(PLACES, -(-len(training) // length))
    for start in np.linspace(0, max(0, len(training) - length), count, dtype=int):
        yield training[start : start + length]
