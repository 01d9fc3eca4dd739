"""The ONNX graph gives the hypotheses of generation/: whatever the search, the batch, the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_graphs import EOS, check, make_encoder
from torch import nn

from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder
from captioner.models.language_model import LanguageModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

WORDS = 9


def make_captioner(
    kind: str = "lstm", *, layers: int = 1, eos_bias: float = 0.0, encoder: Encoder | None = None
) -> Captioner:
    torch.manual_seed(0)
    language_model = LanguageModel(
        vocab_size=WORDS, embedding_dim=6, hidden_size=7, num_layers=layers, kind=kind
    )
    for parameter in language_model.parameters():
        nn.init.normal_(parameter, std=0.8)
    with torch.no_grad():
        language_model.output.bias[EOS] += eos_bias
    model = Captioner(language_model=language_model, feature_dim=5, encoder=encoder)
    model.set_feature_statistics(torch.full((5,), 0.1), torch.full((5,), 0.3))
    return model.eval()


@pytest.mark.parametrize(
    "search",
    [
        {"beam_size": 1, "n_best": 1},
        {"beam_size": 4, "length_penalty": 0.5, "min_length": 3, "no_repeat_ngram": 2},
    ],
    ids=["greedy", "beam"],
)
def test_searches_of_a_frozen_encoder(tmp_path: Path, search: dict[str, Any]) -> None:
    found = check(tmp_path / "m.onnx", make_captioner(), make_encoder("pooled"), **search)
    assert len({round(float(one[0].score), 4) for one in found}) == 3, "images make no difference"


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_a_trained_encoder_with_a_grid(tmp_path: Path, kind: str) -> None:
    """Every recurrent network, two layers, several first words."""
    model = make_captioner(kind, layers=2, encoder=make_encoder("grid"))
    check(tmp_path / "m.onnx", model, None, beam_size=2, n_best=2)


def test_sentences_end_early_and_late(tmp_path: Path) -> None:
    """All end at once, with the loop; none ends, and the longest are closed without an end."""
    encoder = make_encoder("pooled")
    early = check(
        tmp_path / "early.onnx", make_captioner(eos_bias=9), encoder, beam_size=2, n_best=1
    )
    assert all(one[0].token_ids == () and one[0].finished for one in early)
    late = check(
        tmp_path / "late.onnx", make_captioner(eos_bias=-30), encoder, beam_size=2, n_best=2
    )
    assert all(len(h.token_ids) == 6 and not h.finished for one in late for h in one)


def test_beams_that_can_go_nowhere_are_closed(tmp_path: Path) -> None:
    """Five words, none twice, and an end that is not allowed before the sixth."""
    rules = {"min_length": 6, "no_repeat_ngram": 1, "beam_size": 2, "n_best": 2}
    found = check(tmp_path / "m.onnx", make_captioner(), make_encoder("pooled"), **rules)
    assert all(len(h.token_ids) == 5 and not h.finished for one in found for h in one)


def test_equal_words_are_ordered_as_in_beam_search(tmp_path: Path) -> None:
    """With an output layer of zeros every word is as likely as any other."""
    model = make_captioner()
    nn.init.zeros_(model.language_model.output.weight)
    nn.init.zeros_(model.language_model.output.bias)
    found = check(tmp_path / "m.onnx", model, make_encoder("pooled"), beam_size=3, n_best=3)
    assert found[0][0].token_ids == ()


def test_the_graph_is_a_loop_of_standard_operators(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    check(path, make_captioner(), make_encoder("pooled"), beam_size=1, max_length=40)
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    loops = [node for node in graph.graph.node if node.op_type == "Loop"]
    assert len(loops) == 2  # over what the image gives, and over words
    assert all(len(loop.attribute[0].g.node) < 200 for loop in loops), "unrolled"
    assert {one.domain for one in graph.opset_import} == {""} and not graph.functions
    assert {p.key: p.value for p in graph.metadata_props}["words"] == "a b"
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # any batch
