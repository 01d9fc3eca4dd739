"""The ONNX graph gives the hypotheses of generation/, whatever the batch and the weights.

Other models: test_onnx_steps.py, and one that attends, by the command, tests/commands.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_graphs import EOS, check, compare, make_encoder
from torch import nn

from captioner.models.captioner import Captioner
from captioner.models.language_model import LanguageModel

if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):  # seconds to import
    pytest.skip("the extra [onnx] is not installed", allow_module_level=True)

WORDS = 9


def make_model(*, eos_bias: float = 0.0) -> Captioner:
    """A GRU of two layers, trained with an encoder of several first words."""
    torch.manual_seed(0)
    language_model = LanguageModel(
        vocab_size=WORDS, embedding_dim=6, hidden_size=7, num_layers=2, kind="gru"
    )
    for parameter in language_model.parameters():
        nn.init.normal_(parameter, std=0.8)
    with torch.no_grad():
        language_model.output.bias[EOS] += eos_bias
    encoder = make_encoder("grid")
    model = Captioner(language_model=language_model, feature_dim=5, encoder=encoder)
    model.set_feature_statistics(torch.full((5,), 0.1), torch.full((5,), 0.3))
    return model.eval()


# An export takes half a minute: what differs in the weights of the output layer alone is written
# into the graph that is there.
RULES: dict[str, Any] = {
    "beam_size": 4,
    "n_best": 3,
    "length_penalty": 0.5,
    "min_length": 3,
    "no_repeat_ngram": 2,
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a search with rules."""
    path = tmp_path_factory.mktemp("onnx") / "rules.onnx"
    found = check(path, make_model(), None, **RULES)
    assert len({round(float(one[0].score), 4) for one in found}) == 3, "images make no difference"
    return path


def with_output_layer_of(model: Captioner, graph: Path, path: Path) -> Path:
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
    return path


@pytest.mark.slow
@pytest.mark.parametrize("eos_bias", [20, -30])
def test_sentences_end_early_and_late(rules: Path, tmp_path: Path, eos_bias: float) -> None:
    """All end at once, with the loop; none ends, and the longest are closed without an end."""
    model = make_model(eos_bias=eos_bias)
    found = compare(with_output_layer_of(model, rules, tmp_path / "m.onnx"), model, None, **RULES)
    length = RULES["min_length"] if eos_bias > 0 else 6
    assert all(len(h.token_ids) == length for one in found for h in one)
    assert all(h.finished == (eos_bias > 0) for one in found for h in one)


def test_equal_words_are_ordered_as_in_beam_search(rules: Path, tmp_path: Path) -> None:
    """With an output layer of zeros every word is as likely as any other."""
    model = make_model()
    nn.init.zeros_(model.language_model.output.weight)
    nn.init.zeros_(model.language_model.output.bias)
    found = compare(with_output_layer_of(model, rules, tmp_path / "m.onnx"), model, None, **RULES)
    assert len({one[0].token_ids for one in found}) == 1


def test_a_sentence_that_cannot_go_on_is_closed(rules: Path, tmp_path: Path) -> None:
    """A single word is possible: no pair of words may come twice, and no end before the third."""
    model = make_model()
    with torch.no_grad():
        model.language_model.output.bias[torch.arange(WORDS) != WORDS - 1] = -torch.inf
    found = compare(with_output_layer_of(model, rules, tmp_path / "m.onnx"), model, None, **RULES)
    assert all([h.token_ids for h in one] == [(WORDS - 1,) * 2] for one in found)
    assert not any(h.finished for one in found for h in one)


def test_the_graph_is_a_loop_of_standard_operators(rules: Path) -> None:
    import onnx

    graph = onnx.load(rules)
    onnx.checker.check_model(graph)
    loops = [node for node in graph.graph.node if node.op_type == "Loop"]
    assert len(loops) == 2  # over what the image gives, and over words
    assert all(len(loop.attribute[0].g.node) < 250 for loop in loops), "unrolled"
    assert {one.domain for one in graph.opset_import} == {""} and not graph.functions
    assert {p.key: p.value for p in graph.metadata_props}["words"] == "a b"
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # any batch
