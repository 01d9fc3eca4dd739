"""What stands at both ends of every model: embedding, vocabulary layer and loss, and dropout rates.

Letters: B sequences, T longest length, N packed tokens, E embedding, H hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.ops import dropout, linear_cross_entropy
from captioner.ops.models import embedding
from captioner.ops.packing import packed_places
from captioner.profiling import backward_ends, span

Drop = Callable[[Tensor, float], Tensor]  # dropout of packed rows [N, ...] at a rate


@dataclass(frozen=True)
class DropoutRates:
    """Dropout of what the recurrent layers read (prefix and words), of what they give, and between
    them. With `variational` a sequence has one mask for all its steps (Gal & Ghahramani 2016).

    One mask a batch: `embedding` drops words of the vocabulary, wherever they stand (Gal &
    Ghahramani 2016), `recurrent` weights from h to h (DropConnect; Merity et al. 2017).
    """

    input: float = 0.0
    output: float = 0.0
    layer: float = 0.0
    variational: bool = False
    embedding: float = 0.0
    recurrent: float = 0.0


NO_DROPOUT = DropoutRates()


class WordLayers(nn.Module):
    """The embedding [V, E], the output layer from [N, H] to [N, V], the rates of dropout, and what
    computes the operators.

    `tie_embeddings` shares the embedding with the output layer; ValueError unless E = H.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_dim: int,
        hidden_size: int,
        dropout: DropoutRates = NO_DROPOUT,
        tie_embeddings: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_tied(tie_embeddings, embedding_dim, hidden_size)
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.output = nn.Linear(hidden_size, vocab_size)
        if tie_embeddings:
            self.output.weight = self.embedding.weight
        self.dropout, self.backend = dropout, backend

    def embed(self, token_ids: Tensor) -> Tensor:
        """The words' vectors [N, E], in training with dropout of whole words."""
        rate = self.dropout.embedding if self.training else 0.0
        return embed_words(token_ids, self.embedding.weight, rate)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [B, V] of the next token after hidden states [B, H]."""
        return F.log_softmax(self.output(hidden).float(), dim=-1)

    def drop(self, batch_sizes: Tensor, sequences: int, rows: int) -> Drop:
        """Dropout of packed rows: a mask for each row, or with `variational` for each sequence."""
        if not (self.training and self.dropout.variational):
            return lambda rows, rate: dropout(rows, rate, self.training)
        return sequence_dropout(batch_sizes, sequences, rows, self.embedding.weight.device)


def check_tied(tied: bool, embedding_dim: int, hidden_size: int) -> None:
    """ValueError where a shared weight would need two sizes."""
    if tied and embedding_dim != hidden_size:
        raise ValueError(
            f"tied embeddings need embedding_dim = hidden_size, got {embedding_dim} "
            f"and {hidden_size}"
        )


def embed_words(token_ids: Tensor, table: Tensor, rate: float) -> Tensor:
    """Rows [N, E] of an embedding [V, E], with dropout of whole rows of it at a `rate` above 0."""
    rows = embedding(token_ids, table)
    if rate == 0:
        return rows
    kept = dropout(table.new_ones(len(table), 1), rate, True)
    return rows * kept.index_select(0, token_ids)


def sequence_dropout(
    batch_sizes: Tensor,  # [T]
    sequences: int,
    rows: int,
    device: torch.device,
) -> Drop:
    """Dropout of `rows` packed rows [N, ...], or of the last of them, a mask for each sequence."""
    _, places, _ = packed_places(batch_sizes, rows)
    places = places.to(device)

    def drop(rows: Tensor, rate: float) -> Tensor:
        if rate == 0:
            return rows
        masks = dropout(rows.new_ones(sequences, rows.shape[1]), rate, True)
        return rows * masks[places[len(places) - len(rows) :]]

    return drop


def output_loss(
    layer: nn.Linear,
    hidden: Tensor,  # [N, H]
    targets: Tensor,  # [N]
    *,
    label_smoothing: float,
    backend: str,
    token_weights: Tensor | None = None,  # [N]
) -> Tensor:
    """Summed cross-entropy of the targets in nats under an output layer; see
    `ops.linear_cross_entropy`."""
    backward_ends("vocabulary and loss, backward", hidden)
    with span("vocabulary and loss"):
        return linear_cross_entropy(
            hidden,
            layer.weight,
            layer.bias,
            targets,
            label_smoothing=label_smoothing,
            backend=backend,
            token_weights=token_weights,
        )


@torch.no_grad()
def set_bias_from_counts(layer: nn.Linear, counts: Sequence[int]) -> None:
    """Start an output layer from word frequencies (neuraltalk, neon): log(count) - max, a count of
    0 taken as 1."""
    frequency = torch.tensor(counts, dtype=torch.float64).clamp(min=1).log()
    layer.bias.copy_(frequency - frequency.max())
