"""What a language model is worth on a text, read as one stream from its first token to its last.

Shapes: N tokens, T window length.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.data.text.codec import OF_BYTES, unit_name
from captioner.data.text.corpus import TokenStream
from captioner.data.text.windows import window_batch
from captioner.models.language_model import LanguageModel
from captioner.models.stream import StreamModel

WINDOW = 2048  # tokens in memory at once; no figure depends on it

Losses: TypeAlias = Iterator[tuple[Tensor, Tensor]]
"""Targets [T] and their losses [T] in nats, part after part of a text."""


@torch.inference_mode()
def stream_losses(
    model: LanguageModel, tokens: np.ndarray, *, bos: int, window: int = WINDOW
) -> Losses:
    """Targets [T] and their losses [T] in nats (float32), window after window, without dropout.

    The state is carried from window to window, and reset where a document begins. The model's mode
    is left as it was found.
    """
    training = model.training
    reader = StreamModel(model)
    for start in range(0, len(tokens) - 1, window):
        model.eval()
        part = tokens[start : start + window + 1]
        targets, losses = window_losses(reader, part, bos=bos, fresh=start == 0)
        model.train(training)
        yield targets, losses.cpu()


def window_losses(
    reader: StreamModel, tokens: np.ndarray, *, bos: int, fresh: bool
) -> tuple[Tensor, Tensor]:
    """Targets [T] on the CPU and their losses [T] in nats (float32), of tokens [T + 1] that follow
    those that `reader` has read; `fresh` where it has read none. In the text's order."""
    part = torch.from_numpy(tokens.astype(np.int64))
    device = reader.language_model.embedding.weight.device
    batch = window_batch(part.unsqueeze(0), bos=bos, fresh=fresh).to(device)
    logits = reader(*batch.model_inputs).float()
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    return part[1:], losses[_in_text_order(part[:-1] == bos).to(device)]


def mean_probability(members: Sequence[Losses]) -> Losses:
    """The losses of an ensemble: of the mean of its members' probabilities of each token."""
    for parts in zip(*members, strict=True):
        log_probs = torch.stack([-losses for _, losses in parts])  # [M, T]
        yield parts[0][0], math.log(len(parts)) - log_probs.logsumexp(0)


def _in_text_order(begins: Tensor) -> Tensor:
    """Where in the packed order each token of one window stands, [T]."""
    numbered = torch.arange(len(begins))
    starts = begins.clone()
    starts[0] = True
    first = starts.nonzero().squeeze(1)
    lengths = torch.diff(first, append=torch.tensor([len(begins)]))
    sizes, order = lengths.sort(descending=True, stable=True)
    alive = torch.arange(int(sizes[0])).unsqueeze(1) < sizes
    packed = torch.empty(alive.shape, dtype=torch.int64)
    packed[alive] = numbered
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    sequence = starts.cumsum(0) - 1
    return packed[numbered - first[sequence], place[sequence]]


class TextScore:
    """What is averaged over the losses of a split, which `add` takes part after part.

    `loss` in nats a token, `perplexity` its exponential, `bits_per_byte` of the text in UTF-8, by
    which models of different units can be compared (words: of a text in which rare words are
    `<unk>`); of every other unit also `bits_per_character`. A document's end counts as a token.
    """

    def __init__(self, stream: TokenStream, *, unit: str, bos: int) -> None:
        self.stream, self.unit, self.bos = stream, unit, bos
        self._total = 0.0
        self._documents: list[tuple[float, int]] = [(0.0, 0)]  # nats and tokens of each

    def add(self, targets: Tensor, losses: Tensor) -> None:
        """Count the targets [T] that come next, and their losses [T] in nats."""
        self._total += float(losses.sum(dtype=torch.float64))
        ends = (targets == self.bos).nonzero().flatten() + 1
        first, *others = losses.tensor_split(ends)
        nats, tokens = self._documents[-1]
        self._documents[-1] = nats + float(first.sum(dtype=torch.float64)), tokens + len(first)
        self._documents += [(float(one.sum(dtype=torch.float64)), len(one)) for one in others]

    def figures(self) -> dict[str, float]:
        """Every figure, of all tokens that were added."""
        loss = self._total / (len(self.stream.tokens) - 1)
        figures = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.unit == "character":
            figures["bits_per_character"] = loss / math.log(2)
        if self.unit in OF_BYTES:
            figures["bits_per_character"] = self._total / math.log(2) / self.stream.characters
        figures["bits_per_byte"] = self._total / math.log(2) / self.stream.bytes
        return figures

    def per_document(self) -> np.ndarray:
        """Of each document its losses' sum in nats and its number of tokens, [D, 2] float64."""
        return np.array(self._documents, np.float64)

    def averaged_over(self) -> str:
        """What the figures are means over, for the protocol."""
        ends = self.stream.documents - 1
        tokens = len(self.stream.tokens) - 1 - ends
        unit = "words and ends of lines" if self.unit == "word" else f"{unit_name(self.unit)}s"
        return f"{tokens} {unit} and {ends} ends of documents, {self.stream.unknown} unknown"


class TextValidator:
    """Scores a language model on a split, as `TextScore`; called by the trainer with the step
    number."""

    def __init__(self, *, model: LanguageModel, stream: TokenStream, unit: str, bos: int) -> None:
        self.model, self.stream, self.unit, self.bos = model, stream, unit, bos

    def __call__(self, step: int) -> dict[str, float]:
        """Every figure of the split; the model's mode and the random state are left as found."""
        score = TextScore(self.stream, unit=self.unit, bos=self.bos)
        for targets, losses in stream_losses(self.model, self.stream.tokens, bos=self.bos):
            score.add(targets, losses)
        return score.figures()
