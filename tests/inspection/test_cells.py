"""What a reader sees, by hand; planted cells are found; the copy task is one of memory alone."""

from __future__ import annotations

import pytest
import torch

from captioner.data.text.codec import TextCodec
from captioner.data.vocabulary import Vocabulary
from captioner.inspection.cells import (
    best_cell,
    cell_states,
    correlations,
    gate_activations,
    indentation,
    inside_quotes,
    line_position,
)
from captioner.inspection.copy_task import CUE, SYMBOLS, copy_batch, learn_to_copy
from captioner.inspection.surprise import write_surprise_page
from captioner.models.cells import LayerNormLSTM
from captioner.models.language_model import LanguageModel
from captioner.models.rnn import RNN_KINDS

TEXT = 'a\n  "b" c\n"d'


def test_what_a_reader_sees() -> None:
    assert line_position(TEXT).tolist() == [1, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
    assert indentation(TEXT).tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 2, 0, 0, 0]
    assert inside_quotes(TEXT).tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]


def test_a_planted_cell_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    values = inside_quotes(TEXT * 20)
    cells = torch.randn(len(values), 30, generator=generator)
    cells[:, 17] = 0.1 * cells[:, 17] - values
    cells[:, 5] = 1.0
    best, correlation = best_cell(cells, values)
    assert best == 17 and correlation < -0.9
    found = correlations(cells, values)
    expected = torch.corrcoef(torch.cat([cells.t(), values[None]]).double())[-1, :-1]
    assert found[5] == 0
    torch.testing.assert_close(found[6:], expected[6:])


@pytest.mark.parametrize("kind", RNN_KINDS)
def test_cells_are_the_states_after_each_character(kind: str) -> None:
    codec = TextCodec("character", Vocabulary(["a", "b"], counts=[1] * 6))
    model = LanguageModel(vocab_size=6, embedding_dim=3, hidden_size=4, num_layers=2, kind=kind)
    cells = cell_states(model, codec, "abba")
    for length in (1, 4):
        ids = torch.tensor(codec.encode("abba"[:length]))
        _, state = model.eval()(ids, torch.ones(length, dtype=torch.int64))
        last = state[-1].tanh() if "lstm" in kind else state[-1]
        torch.testing.assert_close(cells[length - 1], last.flatten())


def test_gates_and_cells_are_those_of_torchs_lstm() -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(3, 5)
    inputs = torch.randn(6, 3)
    found = gate_activations(lstm, inputs)
    output, (_, c) = lstm(inputs)
    torch.testing.assert_close(found["h"], output)
    torch.testing.assert_close(found["c"][-1], c[0])
    # By hand for the first step, from a state of zeros.
    sums = lstm.weight_ih_l0 @ inputs[0] + lstm.bias_ih_l0 + lstm.bias_hh_l0
    torch.testing.assert_close(found["f"][0], sums[5:10].sigmoid())
    torch.testing.assert_close(found["o"][0], sums[15:].sigmoid())


def test_another_cell_is_not_taken_for_the_lstms() -> None:
    other = LayerNormLSTM(3, 5, 1, dropout=0.0)
    with pytest.raises(ValueError, match="needs the plain LSTM, got LayerNormLSTM"):
        gate_activations(other, torch.zeros(1, 3))


def test_the_copy_task_asks_for_the_first_symbol() -> None:
    inputs, symbols = copy_batch(50, 7, torch.Generator().manual_seed(0))
    assert inputs.shape == (9, 50) and torch.equal(inputs[0], symbols)
    assert (inputs[1:-1] >= SYMBOLS).all() and (inputs[1:-1] < CUE).all()
    assert (inputs[-1] == CUE).all() and set(symbols.tolist()) == set(range(SYMBOLS))


def test_an_lstm_remembers_where_a_vanilla_rnn_does_not() -> None:
    settings = {"delay": 30, "steps": 120, "hidden_size": 48, "lr": 4e-3}
    lstm = learn_to_copy("lstm", forget_bias=4, **settings)  # type: ignore[arg-type]
    rnn = learn_to_copy("rnn_tanh", **settings)  # type: ignore[arg-type]
    assert sum(lstm[-10:]) / 10 > 0.9
    assert sum(rnn[-10:]) / 10 < 0.3


def test_the_page_escapes_and_shades(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "page.html"
    write_surprise_page(path, title="<t>", tokens=[("<", 0.0), ("\n", 100.0)], facts={"a&b": 1})
    html = path.read_text(encoding="utf-8")
    assert "<h1>&lt;t&gt;</h1>" in html and "<dt>a&amp;b</dt><dd>1</dd>" in html
    assert '<span style="--s:0.00" title="0.00 bits">&lt;</span>' in html
    assert (
        '--s:1.00" title="144.27 bits">\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n</span>' in html
    )
