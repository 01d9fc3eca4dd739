"""The ONNX graph gives the hypotheses of generation/: whatever the search, the batch, the model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_graphs import EOS, check, compare, make_encoder
from torch import nn

from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder
from captioner.models.language_model import LanguageModel

if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):  # seconds to import
    pytest.skip("the extra [onnx] is not installed", allow_module_level=True)

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


# What differs in the weights of the output layer alone is written into one graph.
BEAM = {"beam_size": 3, "n_best": 3}


@pytest.fixture(scope="module")
def beam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a search with three beams, of a captioner on a frozen encoder."""
    path = tmp_path_factory.mktemp("onnx") / "beam.onnx"
    found = check(path, make_captioner(), make_encoder("pooled"), **BEAM)
    assert_images_differ(found)
    return path


def assert_images_differ(found: list[Any]) -> None:
    assert len({round(float(one[0].score), 4) for one in found}) == 3, "images make no difference"


def compare_with_weights_of(model: Captioner, graph: Path, path: Path) -> list[Any]:
    """The graph, with the output layer of `model` in place of its own."""
    import onnx

    content = onnx.load(graph)
    layer = dict(model.language_model.output.named_parameters())
    places = [one for one in content.graph.initializer if ".output." in one.name]
    assert len(places) == 2, [one.name for one in content.graph.initializer]
    for one in places:
        values = layer[one.name.rpartition(".")[2]].detach().numpy()
        one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
    onnx.save(content, path)
    return compare(path, model, make_encoder("pooled"), **BEAM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "search"),
    [
        ("lstm", {"beam_size": 2, "n_best": 2}),
        ("gru", {"beam_size": 4, "length_penalty": 0.5, "min_length": 3, "no_repeat_ngram": 2}),
        ("rnn_tanh", {"beam_size": 2, "n_best": 2, "min_length": 6, "no_repeat_ngram": 1}),
    ],
)
def test_a_trained_encoder_with_a_grid(tmp_path: Path, kind: str, search: dict[str, Any]) -> None:
    """Every recurrent network, two layers, several first words; the rules of a search."""
    model = make_captioner(kind, layers=2, encoder=make_encoder("grid"))
    found = check(tmp_path / "m.onnx", model, None, **search)
    assert_images_differ(found)
    if search.get("no_repeat_ngram") == 1:
        # Five words, none twice, and an end that is not allowed before the sixth: all are closed.
        assert all(len(h.token_ids) == 5 and not h.finished for one in found for h in one)


def test_sentences_end_early_and_late(beam: Path, tmp_path: Path) -> None:
    """All end at once, with the loop; none ends, and the longest are closed without an end."""
    early = compare_with_weights_of(make_captioner(eos_bias=9), beam, tmp_path / "early.onnx")
    assert all(one[0].token_ids == () and one[0].finished for one in early)
    late = compare_with_weights_of(make_captioner(eos_bias=-30), beam, tmp_path / "late.onnx")
    assert all(len(h.token_ids) == 6 and not h.finished for one in late for h in one)


def test_equal_words_are_ordered_as_in_beam_search(beam: Path, tmp_path: Path) -> None:
    """With an output layer of zeros every word is as likely as any other."""
    model = make_captioner()
    nn.init.zeros_(model.language_model.output.weight)
    nn.init.zeros_(model.language_model.output.bias)
    found = compare_with_weights_of(model, beam, tmp_path / "m.onnx")
    assert found[0][0].token_ids == ()


def test_greedy_search_and_the_graph_is_a_loop_of_standard_operators(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "m.onnx"
    search = {"beam_size": 1, "n_best": 1, "max_length": 40}
    assert_images_differ(check(path, make_captioner(), make_encoder("pooled"), **search))
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    loops = [node for node in graph.graph.node if node.op_type == "Loop"]
    assert len(loops) == 2  # over what the image gives, and over words
    assert all(len(loop.attribute[0].g.node) < 200 for loop in loops), "unrolled"
    assert {one.domain for one in graph.opset_import} == {""} and not graph.functions
    assert {p.key: p.value for p in graph.metadata_props}["words"] == "a b"
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # any batch
