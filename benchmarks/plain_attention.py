"""The baseline with feedback: Show, Attend and Tell (Xu et al. 2015) as its PyTorch tutorials write
it, nothing of this package.

Captions are padded and sorted, longest first, and every caption has a copy of its image's grid;
nn.LSTMCell, additive attention and the vocabulary's layer run in a Python loop up to the longest
caption, over those that have not ended. Equations as in captioner.models.show_attend_tell, dropout
only before the vocabulary's layer.

Shapes: B captions, b of them at a step, T longest, N packed tokens, V vocabulary, R regions, F
image feature, H hidden (= E embedding = width of the keys).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

Outputs = tuple[Tensor, Tensor]  # logits [N, V] and weights [B, T, R]


class PlainAdditiveAttention(nn.Module):
    """w' tanh(W_q q + W_k v_i), then a softmax over the regions."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def forward(
        self,
        regions: Tensor,  # [b, R, H]
        keys: Tensor | None,  # [b, R, H], None computes them
        hidden: Tensor,  # [b, H]
    ) -> tuple[Tensor, Tensor]:
        """Contexts [b, H] and weights [b, R]."""
        keys = self.key(regions) if keys is None else keys
        scores = self.score(torch.tanh(self.query(hidden).unsqueeze(1) + keys)).squeeze(2)
        weights = F.softmax(scores, dim=1)
        return (weights.unsqueeze(2) * regions).sum(1), weights


class PlainAttention(nn.Module):
    """The tutorials' captioner; with `keys_once` the keys are not computed anew at every step."""

    def __init__(
        self, weights: Mapping[str, Tensor], *, dropout: float, keys_once: bool = False
    ) -> None:
        super().__init__()
        vocab_size, hidden = weights["output.weight"].shape
        self.region_projection = nn.Linear(weights["region_projection.weight"].shape[1], hidden)
        self.first_hidden, self.first_cell = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.embedding = nn.Embedding(vocab_size, hidden)
        self.attention = PlainAdditiveAttention(hidden)
        self.gate = nn.Linear(hidden, hidden)
        self.lstm = nn.LSTMCell(2 * hidden, hidden)
        self.deep_output = nn.Linear(3 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, vocab_size)
        self.keys_once = keys_once
        self.load_state_dict(weights)

    def forward(self, features: Tensor, captions: Tensor, lengths: Tensor) -> Outputs:
        """Of features [B, R, F] and captions [B, T], longest first."""
        regions = F.relu(self.region_projection(features.float()))
        keys = self.attention.key(regions) if self.keys_once else None
        mean = regions.mean(dim=1)
        h, c = torch.tanh(self.first_hidden(mean)), torch.tanh(self.first_cell(mean))
        words = self.embedding(captions)
        logits = words.new_zeros(*captions.shape, self.output.out_features)
        all_weights = words.new_zeros(*captions.shape, regions.shape[1])
        for t in range(captions.shape[1]):
            b = int((lengths > t).sum())
            own = None if keys is None else keys[:b]
            context, weights = self.attention(regions[:b], own, h[:b])
            context = torch.sigmoid(self.gate(h[:b])) * context
            h, c = self.lstm(torch.cat([words[:b, t], context], dim=1), (h[:b], c[:b]))
            deep = torch.tanh(self.deep_output(torch.cat([words[:b, t], h, context], dim=1)))
            logits[:b, t] = self.output(self.dropout(deep))
            all_weights[:b, t] = weights
        return pack_padded_sequence(logits, lengths, batch_first=True).data, all_weights


def doubly_stochastic_loss(
    outputs: Outputs,
    targets: Tensor,  # [N]
    *,
    label_smoothing: float,
    factor: float,
) -> Tensor:
    """The mean loss of a token, and `factor` times (1 - sum_t alpha_ti)^2, summed over captions and
    regions, by the number of tokens."""
    logits, weights = outputs
    loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    return loss + factor * (1 - weights.sum(dim=1)).square().sum() / len(targets)
