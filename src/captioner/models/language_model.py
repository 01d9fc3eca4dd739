"""The recurrent language model: words in, the next word's scores out.

Letters: B sequences, T longest length, N packed tokens, P prefix steps, E embedding, H hidden,
V vocabulary, L layers, U distinct rows that tokens read.

A prefix is a few embeddings read before the first word: an image is one (or one a region). In the
packed layout it is a concatenation: cat([prefix, words]) with batch_sizes [B] * P + batch_sizes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.activation_regularisation import (
    ActivationRegularisation,
    with_gradient_of,
)
from captioner.models.cells import ROUNDS
from captioner.models.lstm import LSTM
from captioner.models.rnn import dropped_weights_hh, make_rnn
from captioner.models.word_layers import (
    NO_DROPOUT,
    Drop,
    DropoutRates,
    check_tied,
    embed_words,
    output_loss,
    sequence_dropout,
    set_bias_from_counts,
)
from captioner.ops import dropout
from captioner.ops.models import index_select
from captioner.profiling import backward_ends, span

State = tuple[Tensor, ...]  # h and, for an LSTM, c: each [L, B, H]

NO_REGULARISATION = ActivationRegularisation()
LARGEST_TABLE = 2**25  # values that generation may keep of words' input projections


class Before(TypedDict, total=False):
    """What the language model has read before the first word of each sequence: a prefix, or a state
    and the recurrent weights that it was computed with."""

    prefix: Tensor  # [P, B, E], still to be read
    state: State  # of what has been read, each tensor [L, B, H]
    weights_hh: list[Tensor] | None  # of each layer, where they have dropout


class LanguageModel(nn.Module):
    """Embedding, recurrent layers and a linear layer to the vocabulary.

    `kind` is one of `rnn.RNN_KINDS`, `rounds` the mogrifier's; the state is (h, c), or (h,) where
    there is no cell.
    `tie_embeddings` shares the embedding with the output layer; ValueError unless E = H. In
    training `regularisation` of the hidden states adds to the gradient of `loss`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_dim: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: DropoutRates = NO_DROPOUT,
        regularisation: ActivationRegularisation = NO_REGULARISATION,
        tie_embeddings: bool = False,
        backend: str = "auto",
        kind: str = "lstm",
        rounds: int = ROUNDS,
    ) -> None:
        super().__init__()
        check_tied(tie_embeddings, embedding_dim, hidden_size)
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        # Named lstm whatever its `kind`: checkpoints have its weights under that name.
        sizes = (embedding_dim, hidden_size, num_layers)
        between = dropout.layer if num_layers > 1 else 0.0
        self.lstm = make_rnn(kind, *sizes, dropout=between, backend=backend, rounds=rounds)
        self.output = nn.Linear(hidden_size, vocab_size)
        if tie_embeddings:
            self.output.weight = self.embedding.weight
        self.dropout, self.regularisation, self.backend = dropout, regularisation, backend
        self.kind, self.rounds = kind, rounds
        self._table: tuple[list[Tensor], Tensor] | None = None  # weights, projections [V, 4H]
        self._word_projections: Tensor | None = None

    def forward(
        self,
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        prefix: Tensor | None = None,  # [P, B, E]
        state: State | None = None,  # h and c, each [L, B, H]
    ) -> tuple[Tensor, State]:
        """Logits [N, V] of the token after each input token, and the state after the last."""
        hidden, state = self.hidden(token_ids, batch_sizes, prefix, state)
        return self.output(hidden), state

    def loss(
        self,
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        targets: Tensor,  # [N] the token after each
        *,
        prefix: Tensor | None = None,  # [P, B, E]
        state: State | None = None,  # h and c, each [L, B, H]
        label_smoothing: float = 0.0,
        capacity: bool = False,
    ) -> tuple[Tensor, State]:
        """Summed cross-entropy of the targets in nats, but for targets of -100, and the last state.

        The logits are never kept (`ops.linear_cross_entropy`). `capacity` as in `hidden`.
        """
        output, state, drop = self.recurrent(
            token_ids, batch_sizes, prefix, state, capacity=capacity
        )
        hidden = drop(output, self.dropout.output)
        settings = {"label_smoothing": label_smoothing, "backend": self.backend}
        loss = output_loss(self.output, hidden, targets, **settings)  # type: ignore[arg-type]
        if self.training and self.regularisation:
            loss = with_gradient_of(loss, self.regularisation.penalty(output, hidden, batch_sizes))
        return loss, state

    def hidden(
        self,
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        prefix: Tensor | None = None,  # [P, B, E]
        state: State | None = None,  # h and c, each [L, B, H]
        *,
        weights_hh: list[Tensor] | None = None,  # of each layer
        capacity: bool = False,
    ) -> tuple[Tensor, State]:
        """What the output layer reads after each input token, [N, H], and the state at the end.

        `weights_hh`: recurrent weights with dropout that is drawn already. With `capacity` (see
        `lstm_packed`) batch_sizes lies on the device; N and the B of prefix or state, one of which
        must be given, need not be filled. All B sequences read a prefix.
        """
        output, state, drop = self.recurrent(
            token_ids, batch_sizes, prefix, state, weights_hh=weights_hh, capacity=capacity
        )
        return drop(output, self.dropout.output), state

    def recurrent(
        self,
        token_ids: Tensor,  # [N] packed
        batch_sizes: Tensor,  # [T] on the CPU
        prefix: Tensor | None = None,  # [P, B, E]
        state: State | None = None,  # h and c, each [L, B, H]
        *,
        weights_hh: list[Tensor] | None = None,  # of each layer
        capacity: bool = False,
    ) -> tuple[Tensor, State, Drop]:
        """The last layer's h after each token, [N, H], without dropout, the state at the end, and
        the dropout that rows [N, ...] have at a rate; arguments as `hidden`."""
        with span("embedding"):
            data, batch_sizes, rows, before = self._read_words(
                token_ids, batch_sizes, prefix, shares=not capacity
            )
            if capacity and state is None and prefix is not None:
                state = self.zero_state(data, prefix.shape[1])
            drop = self._dropout(batch_sizes, state, before + len(token_ids))
            data = drop(data, self.dropout.input)
        backward_ends("LSTM, backward", data)
        with span("LSTM"):
            output, state = self.lstm.forward_packed(
                data,
                batch_sizes,
                state,
                input_rows=rows,
                between=lambda rows: drop(rows, self.lstm.dropout),
                weights_hh=self._recurrent_weights() if weights_hh is None else weights_hh,
                capacity=capacity,
            )
        return output[before:], state, drop

    def _read_words(
        self, token_ids: Tensor, batch_sizes: Tensor, prefix: Tensor | None, *, shares: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """The embeddings [U, E], batch_sizes [P + T], the row that each token reads (None: row by
        row), and how many rows the prefix takes."""
        rows = None
        if shares and self._shares_words():
            token_ids, rows = token_ids.unique(return_inverse=True)
        rate = self.dropout.embedding if self.training else 0.0
        data = embed_words(token_ids, self.embedding.weight, rate)
        before = 0
        if prefix is not None:
            steps, batch = prefix.shape[:2]
            before = steps * batch
            data = torch.cat([prefix.flatten(0, 1), data])
            batch_sizes = torch.cat([batch_sizes.new_full((steps,), batch), batch_sizes])
            if rows is not None:
                rows = torch.cat([torch.arange(before), rows + before])
        return data, batch_sizes, rows, before

    def read(
        self,
        embeddings: Tensor,  # [P, B, E]
        state: State | None = None,
        *,
        weights_hh: list[Tensor] | None = None,  # of each layer
        capacity: bool = False,
    ) -> tuple[Tensor, State]:
        """Run over embeddings of equal length: output [P, B, H] and the state after; `weights_hh`
        as in `hidden`, with `capacity` nothing is read on the host."""
        steps, batch = embeddings.shape[:2]
        sizes = torch.full((steps,), batch, device=embeddings.device if capacity else None)
        if capacity and state is None:
            state = self.zero_state(embeddings, batch)
        drop = self._dropout(sizes, state, steps * batch)
        output, state = self.lstm.forward_packed(
            drop(embeddings.flatten(0, 1), self.dropout.input),
            sizes,
            state,
            between=lambda rows: drop(rows, self.lstm.dropout),
            weights_hh=self._recurrent_weights() if weights_hh is None else weights_hh,
            capacity=capacity,
        )
        return output.view(steps, batch, -1), state

    def after_prefix(
        self,
        prefix: Tensor,  # [P, I, E]
        rows: Tensor,  # [B] which prefix each sequence follows
        *,
        capacity: bool = False,
    ) -> Before:
        """What precedes each sequence: its prefix, or the state after it where sequences share
        prefixes, each of which is then read once."""
        if len(rows) < 2 * prefix.shape[1]:
            return {"prefix": index_select(prefix, 1, rows)}
        weights_hh = self._recurrent_weights()
        read = self.read(prefix, weights_hh=weights_hh, capacity=capacity)[1]
        state = tuple(index_select(one, 1, rows) for one in read)
        return {"state": state, "weights_hh": weights_hh}

    def step(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of generation: tokens [B] -> log-probabilities [B, V] of the next, new state."""
        output, state = self.advance(token_ids, state)
        return self.log_probs(output), state

    def advance(self, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
        """The recurrent part of a step: tokens [B] -> h of the last layer [B, H], new state."""
        if self._word_projections is not None:
            return self.lstm.step(self._word_projections, token_ids, state)  # type: ignore[operator]
        output, state = self.read(self.embedding(token_ids).unsqueeze(0), state)
        return output[0], state

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [B, V] of the next token after hidden states [B, H]."""
        return F.log_softmax(self.output(hidden).float(), dim=-1)

    @contextmanager
    def tabulated(self) -> Iterator[None]:
        """While open, `step` looks up words' input projections in a table [V, 4H], which is kept as
        long as the weights hold the same values. For generation: no gradient, no change of
        weights. Opened within itself it does nothing: many batches compare the weights once."""
        if self._word_projections is not None:
            yield
            return
        with torch.no_grad():
            self._word_projections = self._project_words()
            try:
                yield
            finally:
                self._word_projections = None

    def zero_state(self, like: Tensor, batch: int) -> State:
        """The state before anything is read, (h, c), each [L, B, H]."""
        return (like.new_zeros(self.lstm.num_layers, batch, self.lstm.hidden_size),) * 2

    def _recurrent_weights(self) -> list[Tensor] | None:
        """Those of each layer with dropout drawn, None where there is none."""
        return dropped_weights_hh(self.lstm, self.dropout.recurrent)

    def _dropout(self, batch_sizes: Tensor, state: State | None, rows: int) -> Drop:
        """Dropout of `rows` packed rows [N, ...], or the last of them: a mask for each row, or for
        each of the sequences in `state`, or else in batch_sizes."""
        if not (self.training and self.dropout.variational):
            return lambda rows, rate: dropout(rows, rate, self.training)
        batch = int(batch_sizes[0]) if state is None else state[0].shape[1]
        return sequence_dropout(batch_sizes, batch, rows, self.embedding.weight.device)

    def _shares_words(self) -> bool:
        """Whether equal words are read once: exact where the input has no dropout, and faster on
        a CPU."""
        dropped = self.training and self.dropout.input > 0
        device = self.embedding.weight.device.type
        return not dropped and device == "cpu" and not torch.compiler.is_compiling()

    def _project_words(self) -> Tensor | None:
        """Every word's input projection [V, 4H]; None if too large or no LSTM."""
        values = self.embedding.num_embeddings * 4 * self.lstm.hidden_size
        if not isinstance(self.lstm, LSTM) or values > LARGEST_TABLE:
            return None
        weights = [self.embedding.weight, *self.lstm.all_weights[0]]
        # Compared by value: fused optimisers do not increase the version counters.
        if self._table is None or not all(map(_equal, self._table[0], weights)):
            copies = [weight.detach().clone() for weight in weights]
            self._table = (copies, self.lstm.project(self.embedding.weight))
        return self._table[1]


def _equal(kept: Tensor, now: Tensor) -> bool:
    return kept.device == now.device and kept.dtype == now.dtype and torch.equal(kept, now)


@torch.no_grad()
def initialise(
    model: nn.Module, *, scheme: str, scale: float = 0.08, forget_bias: float = 1.0
) -> None:
    """Initialise every weight of a language model or of a captioner's own layers, in place.

    "uniform": weights from U(-scale, scale) (Show and Tell, neuraltalk, neon). "xavier": Glorot's
    uniform, recurrent matrices orthogonal. "fan_in": weights from U(-1/sqrt(n), 1/sqrt(n)) with n
    inputs, embeddings from N(0, 1) unless the output layer shares them (PyTorch's own defaults), so
    that layers of any width give numbers of one size, and words as large ones as the image.
    Gains are 1, biases 0, an LSTM's forget gate's `forget_bias` (Jozefowicz et al. 2015; neon has
    0).
    """
    tables = _embeddings_alone(model) if scheme == "fan_in" else set()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0 if "gain_" in name else 0.0)
        elif parameter in tables:
            parameter.normal_()
        elif scheme == "fan_in":
            bound = parameter[0].numel() ** -0.5
            parameter.uniform_(-bound, bound)
        elif scheme == "uniform":
            parameter.uniform_(-scale, scale)
        elif "weight_hh" in name:
            for gate in parameter.split(parameter.shape[1]):
                nn.init.orthogonal_(gate)
        else:
            nn.init.xavier_uniform_(parameter)
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if name.startswith("bias_ih"):
                    parameter.chunk(4)[1].fill_(forget_bias)


def _embeddings_alone(model: nn.Module) -> set[Tensor]:
    """The embeddings' weights that no other layer shares."""
    others = {
        weight
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
    }
    return {one.weight for one in model.modules() if isinstance(one, nn.Embedding)} - others


def set_output_bias(model: LanguageModel, counts: Sequence[int]) -> None:
    """Start from word frequencies (neuraltalk, neon): log(count) - max, a count of 0 taken as 1."""
    set_bias_from_counts(model.output, counts)
