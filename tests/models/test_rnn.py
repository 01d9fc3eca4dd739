"""GRU and RNN over packed rows against torch's own over padded input, and dropout by sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from captioner.models.language_model import DropoutRates, LanguageModel, initialise
from captioner.models.rnn import RNN_KINDS, make_rnn
from captioner.ops import dropout
from captioner.ops.dropout import drawing_from
from captioner.ops.packing import packed_places

LENGTHS = (5, 4, 2)


def sequences(size: int) -> list[Tensor]:
    return [torch.randn(n, size, dtype=torch.float64) for n in LENGTHS]


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("kind", ["gru", "rnn_tanh"])
def test_packed_rows_give_what_each_sequence_gives_alone(kind: str, num_layers: int) -> None:
    torch.manual_seed(1)
    mine = make_rnn(kind, 3, 4, num_layers, dropout=0.0, backend="auto").double()
    baseline = (nn.GRU if kind == "gru" else nn.RNN)(3, 4, num_layers).double()
    baseline.load_state_dict(mine.state_dict())
    alone = sequences(3)
    packed = pack_sequence(alone)
    hx = torch.randn(num_layers, 3, 4, dtype=torch.float64)
    output, (hy,) = mine.forward_packed(packed.data, packed.batch_sizes, (hx,))
    split = unpack_sequence(packed._replace(data=output))
    for b, one in enumerate(alone):
        expected, last = baseline(one.unsqueeze(1), hx[:, b : b + 1].contiguous())
        torch.testing.assert_close(split[b], expected.squeeze(1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(hy[:, b], last.squeeze(1), rtol=1e-12, atol=1e-12)
    rows = torch.tensor([0, 0, 1, 2, 0, 1, 2, 2, 1, 0, 0])
    shared, _ = mine.forward_packed(alone[0][:3], packed.batch_sizes, input_rows=rows)
    written, _ = mine.forward_packed(alone[0][rows], packed.batch_sizes)
    torch.testing.assert_close(shared, written, rtol=0, atol=0)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lstm, gru, rnn_tanh, .*, got 'elman'"):
        make_rnn("elman", 3, 4, 1, dropout=0.0, backend="auto")


@pytest.mark.parametrize("kind", RNN_KINDS)
def test_one_step_at_a_time_is_the_same_as_all_at_once(kind: str) -> None:
    torch.manual_seed(2)
    model = LanguageModel(vocab_size=7, embedding_dim=3, hidden_size=4, num_layers=2, kind=kind)
    model.double().eval()
    tokens = torch.randint(7, (6, 2))
    logits, _ = model(tokens.flatten(), torch.full((6,), 2))
    state = tuple(
        torch.zeros(2, 2, 4, dtype=torch.float64) for _ in range(2 if "lstm" in kind else 1)
    )
    with torch.no_grad(), model.tabulated():
        for t in range(6):
            log_probs, state = model.step(tokens[t], state)
            expected = logits.view(6, 2, 7)[t].float().log_softmax(-1)
            torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", RNN_KINDS)
def test_recurrent_weights_are_orthogonal_gate_by_gate(kind: str) -> None:
    model = LanguageModel(vocab_size=7, embedding_dim=4, hidden_size=4, kind=kind)
    initialise(model, scheme="xavier")
    for gate in model.lstm.weight_hh_l0.split(4):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(4), rtol=0, atol=1e-5)
    biases = [b.detach() for n, b in model.lstm.named_parameters() if "bias" in n]
    assert float(torch.cat(biases).sum()) == (4 if "lstm" in kind else 0)  # the forget gate's
    gains = [gain.detach() for name, gain in model.lstm.named_parameters() if "gain" in name]
    assert len(gains) == (3 if kind == "layer_norm_lstm" else 0)
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains)


@pytest.mark.parametrize("kind", RNN_KINDS)
def test_variational_dropout_keeps_a_sequences_mask_for_all_its_steps(kind: str) -> None:
    """Masks drawn once a sequence, put by hand into a stack of one-layer networks."""
    torch.manual_seed(3)
    rates = DropoutRates(input=0.5, layer=0.4, output=0.3, variational=True)
    model = LanguageModel(
        vocab_size=9, embedding_dim=6, hidden_size=5, num_layers=2, kind=kind, dropout=rates,
    )  # fmt: skip
    packed = pack_sequence([torch.randint(9, (n,)) for n in LENGTHS])
    _, which, _ = packed_places(packed.batch_sizes, len(packed.data))
    assert which.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 0]

    torch.manual_seed(4)
    found, _ = model(packed.data, packed.batch_sizes)

    torch.manual_seed(4)
    rows = model.embedding(packed.data)
    masks = [dropout(torch.ones(3, n), p, True) for n, p in ((6, 0.5), (5, 0.4), (5, 0.3))]
    for k in range(2):
        layer = make_rnn(kind, rows.shape[1], 5, 1, dropout=0.0, backend="auto")
        own = {
            n.replace(f"_l{k}", "_l0"): p
            for n, p in model.lstm.state_dict().items()
            if n.endswith(f"_l{k}")
        }
        layer.load_state_dict(own)
        rows, _ = layer.forward_packed(rows * masks[k][which], packed.batch_sizes)
    expected = model.output(rows * masks[2][which])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    model.eval()
    plain = LanguageModel(vocab_size=9, embedding_dim=6, hidden_size=5, num_layers=2, kind=kind)
    plain.load_state_dict(model.state_dict())
    plain.eval()
    torch.testing.assert_close(
        model(packed.data, packed.batch_sizes)[0], plain(packed.data, packed.batch_sizes)[0]
    )


@pytest.mark.parametrize("kind", RNN_KINDS)
def test_recurrent_dropout_computes_with_masked_weights(kind: str) -> None:
    """One mask a layer for all steps: losses and gradients of a model whose weights are masked."""
    sizes = {"vocab_size": 9, "embedding_dim": 6, "hidden_size": 5, "num_layers": 2, "kind": kind}
    torch.manual_seed(3)
    plain = LanguageModel(**sizes).double()  # type: ignore[arg-type]
    model = LanguageModel(**sizes, dropout=DropoutRates(recurrent=0.4)).double()  # type: ignore[arg-type]
    model.load_state_dict(plain.state_dict())
    packed = pack_sequence([torch.randint(9, (n,)) for n in LENGTHS])
    batch, targets = (packed.data, packed.batch_sizes), packed.data.flip(0)

    drawn = torch.Generator().manual_seed(5)
    with drawing_from(drawn):
        model.loss(*batch, targets)[0].backward()
    masks = {}
    with drawing_from(drawn.manual_seed(5)), torch.no_grad():
        for name in ("weight_hh_l0", "weight_hh_l1"):
            weight = getattr(plain.lstm, name)
            masks[f"lstm.{name}"] = dropout(torch.ones_like(weight), 0.4, True)
            assert 0 < (masks[f"lstm.{name}"] == 0).double().mean() < 1
            weight.mul_(masks[f"lstm.{name}"])
    plain.loss(*batch, targets)[0].backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        expected = other.grad * masks.get(name, 1)
        torch.testing.assert_close(one.grad, expected, rtol=1e-12, atol=1e-12)

    state = drawn.get_state()
    with drawing_from(drawn):  # neither evaluation nor a rate of 0 draws
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model.eval()(*batch)[0], plain(*batch)[0])
    assert torch.equal(drawn.get_state(), state)
