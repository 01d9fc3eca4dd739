"""Other cells in the LSTM's place, against their papers' formulas written out for one sequence."""

from __future__ import annotations

import pytest
import torch
from attention_models import NONE, layered
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from captioner.models.cells import LayerNormLSTM, MogrifierLSTM, SteppedLSTM
from captioner.models.lstm import LSTM

E, H, L = 3, 4, 2
LENGTHS = (5, 4, 4, 1)


def normalised(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * gain + bias


def layer_norm_step(
    p: dict[str, Tensor], k: int, x: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Equations 20 to 22 of Ba et al. 2016."""
    of_h = normalised(p[f"weight_hh_l{k}"] @ h, p[f"gain_hh_l{k}"], p[f"bias_hh_l{k}"])
    of_x = normalised(p[f"weight_ih_l{k}"] @ x, p[f"gain_ih_l{k}"], p[f"bias_ih_l{k}"])
    i, f, g, o = (of_h + of_x).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * normalised(c, p[f"gain_c_l{k}"], p[f"bias_c_l{k}"]).tanh(), c


def mogrifier_step(
    p: dict[str, Tensor], k: int, x: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Equations 1 and 2 of Melis et al. 2020, five rounds, and the LSTM's."""
    for number in (1, 3, 5):
        x = 2 * torch.sigmoid(p[f"mogrify_{number - 1}_l{k}"] @ h) * x
        if number < 5:
            h = 2 * torch.sigmoid(p[f"mogrify_{number}_l{k}"] @ x) * h
    sums = p[f"weight_ih_l{k}"] @ x + p[f"bias_ih_l{k}"] + p[f"weight_hh_l{k}"] @ h
    i, f, g, o = (sums + p[f"bias_hh_l{k}"]).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


CELLS = {LayerNormLSTM: layer_norm_step, MogrifierLSTM: mogrifier_step}


def some_layers(kind: type[SteppedLSTM]) -> SteppedLSTM:
    torch.manual_seed(1)
    layers = kind(E, H, L, dropout=0.0).double()
    for parameter in layers.parameters():
        parameter.data.uniform_(-1, 1)
    return layers


@pytest.mark.parametrize("kind", CELLS)
def test_packed_sequences_are_computed_by_the_papers_formulas(kind: type[SteppedLSTM]) -> None:
    layers = some_layers(kind)
    own = dict(layers.named_parameters())
    alone = [torch.randn(n, E, dtype=torch.float64) for n in LENGTHS]
    packed = pack_sequence(alone)
    hx, cx = torch.randn(2, L, len(LENGTHS), H, dtype=torch.float64)
    output, (hy, cy) = layers.forward_packed(packed.data, packed.batch_sizes, (hx, cx))
    assert output.shape == (sum(LENGTHS), H)
    found = unpack_sequence(packed._replace(data=output))
    for b, rows in enumerate(alone):
        steps = [*rows]
        for k in range(L):
            h, c = hx[k, b], cx[k, b]
            for t, x in enumerate(steps):
                h, c = CELLS[kind](own, k, x, h, c)
                steps[t] = h
            torch.testing.assert_close(hy[k, b], h, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(cy[k, b], c, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[b], torch.stack(steps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CELLS)
def test_gradients(kind: type[SteppedLSTM]) -> None:
    layers = some_layers(kind)
    data = torch.randn(4, E, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0, 1, 3, 1, 2])

    def run(data: Tensor, *_: Tensor) -> Tensor:
        output, (h, c) = layers.forward_packed(data, torch.tensor([2, 2, 1]), input_rows=rows)
        return output.sum() + (h * c).sum()

    assert torch.autograd.gradcheck(run, (data, *layers.parameters()))


@pytest.mark.parametrize("kind", CELLS)
def test_rows_that_tokens_share_are_read_as_if_written_out(kind: type[SteppedLSTM]) -> None:
    layers, batch_sizes = some_layers(kind), torch.tensor([2, 2, 1])
    data, rows = torch.randn(3, E, dtype=torch.float64), torch.tensor([0, 2, 2, 0, 1])
    shared, _ = layers.forward_packed(data, batch_sizes, input_rows=rows)
    torch.testing.assert_close(shared, layers.forward_packed(data[rows], batch_sizes)[0])


def test_a_mogrifier_without_rounds_is_the_lstm() -> None:
    torch.manual_seed(1)
    plain = LSTM(E, H, L, backend="reference").double()
    layers = MogrifierLSTM(E, H, L, dropout=0.0, rounds=0).double()
    layers.load_state_dict(plain.state_dict())
    packed = pack_sequence([torch.randn(n, E, dtype=torch.float64) for n in LENGTHS])
    found = layers.forward_packed(packed.data, packed.batch_sizes)
    expected = plain.forward_packed(packed.data, packed.batch_sizes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_both_lstms_of_layered_attention_have_the_rounds_that_are_given() -> None:
    model = layered("lstm", kind="mogrifier_lstm", rounds=2)(NONE, {})
    names = [name for name, _ in model.named_parameters() if "mogrify" in name]
    lstms = ("second", "language_model.lstm")
    assert names == [f"{lstm}.mogrify_{k}_l0" for lstm in lstms for k in range(2)]


@pytest.mark.parametrize("kind", CELLS)
def test_capacity_is_refused(kind: type[SteppedLSTM]) -> None:
    with pytest.raises(ValueError, match=f"capacity needs the plain LSTM, this is {kind.__name__}"):
        some_layers(kind).forward_packed(torch.zeros(2, E), torch.tensor([2]), capacity=True)
