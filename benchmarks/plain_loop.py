"""The baseline: the training loop in plain PyTorch that everybody writes, nothing of this package.

Shapes: B captions, T longest, N packed tokens, V vocabulary, F image feature, R regions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

Item = tuple[Tensor, Tensor]
Batch = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[Any, Tensor], Tensor]  # of what a model gives and of the targets [N]


class PlainCaptions(Dataset[Item]):
    """Pairs of a feature [F], or a grid [R, F], and a caption [n + 2], `<bos> w1 .. wn <eos>`."""

    def __init__(
        self, features: Tensor, image_rows: Sequence[int], captions: Sequence[Sequence[int]]
    ) -> None:
        self.features, self.image_rows = features, image_rows
        self.captions = [torch.tensor(caption) for caption in captions]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Item:
        return self.features[self.image_rows[index]], self.captions[index]


def collate(items: list[Item]) -> Batch:
    """Features [B, F] or [B, R, F], padded captions [B, T] and their lengths [B], longest first."""
    items = sorted(items, key=lambda item: len(item[1]), reverse=True)
    features = torch.stack([feature for feature, _ in items])
    lengths = torch.tensor([len(caption) for _, caption in items])
    return features, pad_sequence([caption for _, caption in items], batch_first=True), lengths


class PlainCaptioner(nn.Module):
    """Show and Tell on torch.nn.LSTM: the projected feature is the first input."""

    def __init__(self, weights: Mapping[str, Tensor], dropout: tuple[float, float]) -> None:
        super().__init__()
        embedding_dim, feature_dim = weights["projection.weight"].shape
        vocab_size, hidden_size = weights["output.weight"].shape
        self.projection = nn.Linear(feature_dim, embedding_dim)
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, hidden_size, batch_first=True)
        self.output = nn.Linear(hidden_size, vocab_size)
        self.input_dropout, self.output_dropout = map(nn.Dropout, dropout)
        self.load_state_dict(weights)

    def forward(self, features: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """Logits [N, V] after each word of captions [B, T]; not after the image alone."""
        image = self.projection(features).unsqueeze(1)
        inputs = torch.cat([image, self.embedding(captions)], dim=1)
        inputs = self.input_dropout(inputs)
        packed = pack_padded_sequence(inputs, lengths + 1, batch_first=True)
        hidden, _ = self.lstm(packed)
        return self.output(self.output_dropout(hidden.data[len(captions) :]))


def plain_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    captions: PlainCaptions,
    batch_sampler: Iterable[list[int]],
    *,
    clip_norm: float | None,
    clip_value: float | None,
    loss_of: Loss = F.cross_entropy,
) -> Iterator[float]:
    """The loop: the loss of one optimiser step after another."""
    device = next(model.parameters()).device
    loader = DataLoader(captions, batch_sampler=batch_sampler, collate_fn=collate)
    for features, words, lengths in loader:
        features, words = features.to(device), words.to(device)
        targets = pack_padded_sequence(words[:, 1:], lengths - 1, batch_first=True).data
        optimizer.zero_grad()
        loss = loss_of(model(features, words[:, :-1], lengths - 1), targets)
        loss.backward()
        if clip_value is not None:
            clip_grad_value_(model.parameters(), clip_value)
        if clip_norm is not None:
            clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        yield loss.item()
