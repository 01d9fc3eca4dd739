"""AR and TAR against loops over sequences: what they add to the gradient, and to nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from captioner.models.activation_regularisation import ActivationRegularisation
from captioner.models.language_model import LanguageModel
from captioner.models.word_layers import DropoutRates

LENGTHS = (5, 4, 4, 1)


@pytest.mark.parametrize("lengths", [LENGTHS, (3, 3), (1, 1, 1)])
def test_the_penalty_is_that_of_a_loop_over_sequences(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    packed = pack_sequence([torch.randn(n, 6, dtype=torch.float64) for n in lengths])
    hidden, dropped, tokens = packed.data, torch.randn_like(packed.data), sum(lengths)
    squares = [h.square().mean() for one in dropped.split(1) for h in one]
    changes = [
        (after - before).square().mean()
        for one in unpack_sequence(packed)
        for before, after in pairwise(one)
    ]
    expected = 2.0 * torch.stack(squares).mean() * tokens
    if changes:
        expected = expected + 0.5 * torch.stack(changes).mean() * tokens
    found = ActivationRegularisation(2.0, 0.5).penalty(hidden, dropped, packed.batch_sizes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # In the static-shape form, whose padding rows are 0: what they add is nothing.
    padding = torch.zeros(3, 6, dtype=torch.float64)
    sizes = torch.cat([packed.batch_sizes, torch.zeros(2, dtype=torch.int64)])
    both = (torch.cat([hidden, padding]), torch.cat([dropped, padding]))
    found = ActivationRegularisation(2.0, 0.5).penalty(*both, sizes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_has_it_and_the_loss_has_not() -> None:
    """Under dropout: AR of what the output layer reads, TAR of what the last layer gives."""
    models = []
    for regularisation in (ActivationRegularisation(), ActivationRegularisation(3.0, 7.0)):
        torch.manual_seed(1)
        models.append(
            LanguageModel(
                vocab_size=9,
                embedding_dim=4,
                hidden_size=5,
                dropout=DropoutRates(output=0.4),
                regularisation=regularisation,
            ).double()
        )
    plain, model = models
    packed = pack_sequence([torch.randint(9, (n,)) for n in LENGTHS])
    batch = (packed.data, packed.batch_sizes)
    torch.manual_seed(2)
    loss, _ = plain.loss(*batch, packed.data.flip(0))
    torch.manual_seed(2)
    output, _, drop = plain.recurrent(*batch)
    penalty = model.regularisation.penalty(output, drop(output, 0.4), packed.batch_sizes)
    expected = torch.autograd.grad(loss + penalty, [*plain.parameters()], allow_unused=True)
    torch.manual_seed(2)
    found, _ = model.loss(*batch, packed.data.flip(0))
    assert torch.equal(found, loss)
    found.backward()
    for one, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(one.grad, gradient, rtol=1e-10, atol=1e-12)

    for one in models:
        one.eval().zero_grad()
        one.loss(*batch, packed.data.flip(0))[0].backward()
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)  # type: ignore[arg-type]
