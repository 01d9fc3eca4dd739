"""The language model against one made by hand of torch's own modules."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from captioner.models import language_model
from captioner.models.language_model import (
    DropoutRates,
    LanguageModel,
    initialise,
    set_output_bias,
)
from captioner.ops import dropout
from captioner.ops.extension import ABSENT

V, E, H = 7, 4, 5
SEQUENCES = [torch.tensor(x) for x in ([1, 4, 5, 6], [1, 5, 5], [1, 6])]
BACKENDS = ("reference", "torch", *(() if ABSENT else ("fused",)))


def make(**settings: object) -> LanguageModel:
    torch.manual_seed(0)
    arguments = {"vocab_size": V, "embedding_dim": E, "hidden_size": H, **settings}
    return LanguageModel(**arguments).double()  # type: ignore[arg-type]


def by_hand(model: LanguageModel, sequences: list[Tensor]) -> tuple[Tensor, nn.LSTM]:
    """Logits of embedded sequences [t, E] by nn.LSTM and pack_sequence, and that nn.LSTM."""
    lstm = nn.LSTM(E, model.lstm.hidden_size, model.lstm.num_layers).double()
    lstm.load_state_dict(model.lstm.state_dict())
    return model.output(lstm(pack_sequence(sequences))[0].data), lstm


def assert_close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_prefix_it_is_embedding_lstm_and_linear(backend: str, num_layers: int) -> None:
    model = make(backend=backend, num_layers=num_layers)
    packed = pack_sequence(SEQUENCES)
    expected, _ = by_hand(model, [model.embedding(x) for x in SEQUENCES])
    assert_close(model(packed.data, packed.batch_sizes)[0], expected)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prefix_is_the_first_words_of_every_sequence(backend: str, steps: int) -> None:
    """Outputs and gradients equal those of sequences to which the embeddings were put in front."""
    model = make(backend=backend)
    packed = pack_sequence(SEQUENCES)
    prefix = torch.randn(steps, 3, E, dtype=torch.float64, requires_grad=True)
    logits = model(packed.data, packed.batch_sizes, prefix=prefix)[0]
    weights = torch.randn_like(logits)
    wanted = [prefix, *model.lstm.parameters(), model.embedding.weight, model.output.weight]
    found = torch.autograd.grad((logits * weights).sum(), wanted)

    joined = [torch.cat([prefix[:, b], model.embedding(x)]) for b, x in enumerate(SEQUENCES)]
    everything, lstm = by_hand(model, joined)
    assert_close(logits, everything[3 * steps :])
    theirs = [prefix, *lstm.parameters(), model.embedding.weight, model.output.weight]
    assert_close(found, torch.autograd.grad((everything[3 * steps :] * weights).sum(), theirs))


def test_reading_in_pieces_is_reading_at_once() -> None:
    """Prefix by `read`, then word by word by `step`, gives the log-probabilities of the forward."""
    model = make(num_layers=2)
    words = torch.tensor([[1, 4, 5], [1, 6, 6]])
    prefix = torch.randn(2, 2, E, dtype=torch.float64)
    packed = pack_sequence(list(words))
    logits, last = model(packed.data, packed.batch_sizes, prefix=prefix)
    expected = torch.log_softmax(logits, dim=-1).view(3, 2, V)
    _, state = model.read(prefix)
    for step, tokens in enumerate(words.t()):
        log_probs, state = model.step(tokens, state)
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs.double(), expected[step], rtol=1e-5, atol=1e-6)
    assert_close(state, last)


def test_a_state_carries_over_from_one_text_to_its_continuation() -> None:
    model = make(num_layers=2)
    text = torch.randint(V, (6, 2))
    whole = model(text.flatten(), torch.full((6,), 2))[0].view(6, 2, V)
    first, state = model(text[:4].flatten(), torch.full((4,), 2))
    second, _ = model(text[4:].flatten(), torch.full((2,), 2), state=state)
    assert_close(torch.cat([first, second]).view(6, 2, V), whole)


def test_each_dropout_acts_in_training_and_not_in_evaluation() -> None:
    plain = make(num_layers=2)
    packed = pack_sequence(SEQUENCES)
    expected = plain(packed.data, packed.batch_sizes)[0]
    for name in ("input", "output", "layer", "embedding", "recurrent"):
        model = make(num_layers=2, dropout=DropoutRates(**{name: 0.5}))
        assert not torch.allclose(model(packed.data, packed.batch_sizes)[0], expected), name
        model.eval()
        assert_close(model(packed.data, packed.batch_sizes)[0], expected)


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_dropout_drops_words_wherever_they_stand(tied: bool) -> None:
    """One mask a batch over the vocabulary's rows; a tied output layer keeps all of them."""
    sizes = {"vocab_size": 40, "embedding_dim": H, "tie_embeddings": tied}
    plain, model = make(**sizes), make(**sizes, dropout=DropoutRates(embedding=0.5))
    packed = pack_sequence([torch.randint(40, (n,)) for n in (30, 20, 9)])
    torch.manual_seed(4)
    found = model(packed.data, packed.batch_sizes)[0]
    torch.manual_seed(4)
    kept = dropout(torch.ones(40, 1, dtype=torch.float64), 0.5, True)
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    rows = (model.embedding.weight * kept)[packed.data]
    output = plain.lstm.forward_packed(rows, packed.batch_sizes)[0]
    assert_close(found, plain.output(output))


def test_output_dropout_of_one_leaves_the_bias_alone() -> None:
    model = make(dropout=DropoutRates(output=1.0))
    packed = pack_sequence(SEQUENCES)
    logits = model(packed.data, packed.batch_sizes)[0]
    assert_close(logits, model.output.bias.expand_as(logits))


def test_input_dropout_of_one_hides_prefix_and_words() -> None:
    model = make(dropout=DropoutRates(input=1.0))
    packed = pack_sequence(SEQUENCES)
    prefix = torch.randn(1, 3, E, dtype=torch.float64, requires_grad=True)
    model(packed.data, packed.batch_sizes, prefix=prefix)[0].sum().backward()
    assert prefix.grad is not None and not prefix.grad.any()
    assert not model.embedding.weight.grad.any()


def test_tied_embeddings_are_one_parameter() -> None:
    model = make(embedding_dim=H, tie_embeddings=True)
    assert model.output.weight is model.embedding.weight
    assert sum(p.numel() for p in model.parameters()) == V * H + V + 2 * 4 * H * H + 2 * 4 * H
    with pytest.raises(ValueError, match="embedding_dim = hidden_size, got 4 and 5"):
        make(tie_embeddings=True)


def test_uniform_initialisation_fills_its_range_and_the_forget_gate() -> None:
    model = make(num_layers=2, hidden_size=64)
    initialise(model, scheme="uniform", scale=0.08, forget_bias=1.5)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert 0.06 < parameter.abs().max() <= 0.08, name
        elif "bias_ih" in name:
            i, f, g, o = parameter.chunk(4)
            assert (f == 1.5).all() and not torch.cat([i, g, o]).any(), name
        else:
            assert not parameter.any(), name


@pytest.mark.parametrize("tied", [False, True])
def test_fan_in_initialisation_gives_numbers_of_one_size(tied: bool) -> None:
    torch.manual_seed(0)
    model = LanguageModel(vocab_size=400, embedding_dim=64, hidden_size=64, tie_embeddings=tied)
    initialise(model, scheme="fan_in", forget_bias=1.5)
    bound = 64**-0.5
    for weight in (model.output.weight, *model.lstm.parameters()):
        if weight.dim() == 2:
            assert 0.95 * bound < weight.detach().abs().max() <= bound
    deviation = bound / 3**0.5 if tied else 1
    assert model.embedding.weight.detach().std() == pytest.approx(deviation, rel=0.05)
    assert not model.output.bias.any()


def test_xavier_initialisation_is_orthogonal_in_the_recurrence() -> None:
    model = make(hidden_size=8)
    initialise(model, scheme="xavier", forget_bias=0.0)
    for gate in model.lstm.weight_hh_l0.chunk(4):
        assert_close(gate @ gate.t(), torch.eye(8, dtype=torch.float64))
    bound = math.sqrt(6 / (8 + V))
    assert 0.7 * bound < model.output.weight.abs().max() <= bound
    assert not model.lstm.bias_ih_l0.any()


def test_output_bias_from_counts_gives_their_frequencies() -> None:
    model = make()
    counts = [0, 0, 10, 5, 20, 40, 25]
    set_output_bias(model, counts)
    seen = torch.tensor([max(1, n) for n in counts], dtype=torch.float64)
    assert_close(model.output.bias.detach().softmax(0), seen / seen.sum())
    assert model.output.bias.max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_give_what_the_whole_sequence_gives(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the table of all words and, where that would be too large, without it."""
    model = make(backend=backend, num_layers=2).eval()
    tokens = torch.tensor([[1, 4, 5], [1, 2, 6]])
    with torch.no_grad():
        logits, _ = model(tokens.t().flatten(), torch.tensor([2, 2, 2]))
        expected = logits.log_softmax(1).view(3, 2, V)
        for limit in (language_model.LARGEST_TABLE, 0):
            monkeypatch.setattr(language_model, "LARGEST_TABLE", limit)
            state = (torch.zeros(2, 2, H, dtype=torch.float64),) * 2
            with model.tabulated():
                assert (model._word_projections is None) == (limit == 0)
                for step in range(3):
                    found, state = model.step(tokens[:, step], state)
                    torch.testing.assert_close(found, expected[step].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: torch.optim.Adam(model.parameters(), lr=0.5, fused=True).step(),
        lambda model: torch.optim.SGD(model.parameters(), lr=1.0).step(),
        lambda model: model.embedding.weight.data.mul_(-2),
        lambda model: model.load_state_dict({k: -x for k, x in model.state_dict().items()}),
        lambda model: model.float(),
    ],
    ids=["fused optimiser", "optimiser", "written through .data", "loaded", "another type"],
)
def test_the_table_of_words_follows_the_weights(change: Callable[[LanguageModel], object]) -> None:
    model = make().eval()
    token = torch.tensor([3])

    def step() -> Tensor:
        state = (model.output.weight.new_zeros(1, 1, H),) * 2
        return model.step(token, state)[0]

    with model.tabulated():
        before = step()
    table = model._table
    with model.tabulated():
        assert model._table is table, "made again though nothing changed"
        with model.tabulated():
            step()
        assert model._word_projections is not None, "closed within itself"
    step().square().sum().backward()
    change(model)
    with model.tabulated():
        found = step()
    torch.testing.assert_close(found, step(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before) or next(model.parameters()).dtype == torch.float32
    assert step().requires_grad, "the table is used outside of its context"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [False, True])
def test_words_are_shared_only_where_that_is_exact(backend: str, training: bool) -> None:
    model = make(backend=backend, dropout=DropoutRates(input=0.5)).train(training)
    packed = pack_sequence(SEQUENCES)
    assert model._shares_words() is not training
    if training:
        torch.manual_seed(2)
        dropped = dropout(model.embedding(packed.data), 0.5, training=True)
        expected = model.output(model.lstm.forward_packed(dropped, packed.batch_sizes)[0])
        torch.manual_seed(2)
    else:
        expected, _ = by_hand(model, [model.embedding(x) for x in SEQUENCES])
    assert_close(model(packed.data, packed.batch_sizes)[0], expected)
