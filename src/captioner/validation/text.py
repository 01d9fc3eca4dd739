"""What a language model is worth on a text, read as one stream from its first token to its last.

Shapes: N tokens, T window length.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.data.text.corpus import TokenStream
from captioner.data.text.windows import window_batch
from captioner.models.language_model import LanguageModel
from captioner.models.stream import StreamModel

WINDOW = 2048  # tokens in memory at once; no figure depends on it


@torch.inference_mode()
def stream_losses(
    model: LanguageModel, tokens: np.ndarray, *, bos: int, window: int = WINDOW
) -> Iterator[tuple[Tensor, Tensor]]:
    """Targets [T] and their losses [T] in nats (float32), window after window, without dropout.

    The state is carried from window to window, and reset where a document begins. The model's mode
    is left as it was found.
    """
    training = model.training
    device = model.embedding.weight.device
    reader = StreamModel(model)
    for start in range(0, len(tokens) - 1, window):
        model.eval()
        part = torch.from_numpy(tokens[start : start + window + 1].astype(np.int64))
        numbered = torch.arange(len(part) - 1)
        batch = window_batch(part.unsqueeze(0), bos=bos, fresh=start == 0).to(device)
        logits = reader(*batch.model_inputs).float()
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        order = _in_text_order(part[:-1] == bos, numbered)
        model.train(training)
        yield part[1:], losses.cpu()[order]


def _in_text_order(begins: Tensor, numbered: Tensor) -> Tensor:
    """Where in the packed order each token of one window stands, [T]."""
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


class TextValidator:
    """Scores a language model on a split; called by the trainer with the step number.

    Everything is averaged over the whole split: `loss` in nats a token, `perplexity` its
    exponential; characters: `bits_per_character`; bytes: `bits_per_byte`, and
    `bits_per_character` of the text they spell. A document's end counts as a token.
    """

    def __init__(self, *, model: LanguageModel, stream: TokenStream, unit: str, bos: int) -> None:
        self.model, self.stream, self.unit, self.bos = model, stream, unit, bos

    def __call__(self, step: int) -> dict[str, float]:
        """Every figure of the split; the model's mode and the random state are left as found."""
        tokens = self.stream.tokens
        total = sum(
            float(losses.sum(dtype=torch.float64))
            for _, losses in stream_losses(self.model, tokens, bos=self.bos)
        )
        loss = total / (len(tokens) - 1)
        figures = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        bits = loss / math.log(2)
        if self.unit == "character":
            figures["bits_per_character"] = bits
        elif self.unit == "byte":
            figures["bits_per_byte"] = bits
            figures["bits_per_character"] = total / math.log(2) / self.stream.characters
        return figures

    def averaged_over(self) -> str:
        """What the figures are means over, for the protocol."""
        ends = self.stream.documents - 1
        tokens = len(self.stream.tokens) - 1 - ends
        unit = "words and ends of lines" if self.unit == "word" else f"{self.unit}s"
        return f"{tokens} {unit} and {ends} ends of documents, {self.stream.unknown} unknown"
