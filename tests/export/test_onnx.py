"""A captioner with its search as an ONNX file: what the command proves, and what it must hold.

The steps of other models: test_onnx_steps.py.
"""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flat_generation import beam_search
from PIL import Image
from tiny_captioners import ATTENDING, train
from torch import Tensor, nn

import captioner
from captioner.build.checkpoint import load_captioner
from captioner.generation import Hypothesis
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.encoder import Encoder

if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):  # seconds to import
    pytest.skip("the extra [onnx] is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow
Run = Callable[..., "subprocess.CompletedProcess[str]"]
BOS, EOS = 1, 2
RULES = {
    "beam_size": 4,
    "n_best": 3,
    "length_penalty": 0.5,
    "min_length": 3,
    "max_length": 6,
    "no_repeat_ngram": 2,
}
SEARCH: dict[str, Any] = {"bos": BOS, "eos": EOS, "banned": [0, BOS, 3], **RULES}


@dataclass
class Exported:
    """A checkpoint and what the command has made of it, which takes a quarter of a minute."""

    checkpoint: Path
    graph: Path
    said: str
    model: BaseCaptioner
    encoder: Encoder

    @property
    def photos(self) -> list[Path]:
        """Images of the training data."""
        return sorted((self.checkpoint.parents[1] / "scenes").rglob("*.png"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, run_script: Run) -> Exported:
    """A captioner that attends, its search with rules, from the command line."""
    checkpoint = train(tmp_path_factory.mktemp("attending"), *ATTENDING)
    folder = tmp_path_factory.mktemp("onnx")
    trained = load_captioner(checkpoint, device=torch.device("cpu"))
    assert trained.features.encoder is not None
    photos = sorted((checkpoint.parents[1] / "scenes").rglob("*.png"))
    done = run_script(
        folder,
        "export",
        f"checkpoint={checkpoint}",
        "format=onnx",
        "out=m.onnx",
        f"images={photos[0].parent}",
        "pictures=5",
        "generation=beam",
        *(f"generation.{key}={value}" for key, value in RULES.items()),
    )
    assert done.returncode == 0, done.stderr
    model, encoder = trained.model, trained.features.encoder.eval()
    return Exported(checkpoint, folder / "m.onnx", done.stdout, model, encoder)


def test_the_command_proves_its_file(exported: Exported) -> None:
    """The file then captions without this package, as the README shows."""
    import onnxruntime

    assert "5 of 5 images have the same captions" in exported.said
    record = json.loads(exported.graph.with_suffix(".check.json").read_text())
    assert (record["images"], record["equal"], record["different"]) == (5, 5, [])

    session = onnxruntime.InferenceSession(exported.graph)
    about = session.get_modelmeta().custom_metadata_map
    words, how = json.loads(about["tokens"]), json.loads(about["transform"])
    size, kind = (how["size"], how["size"]), Image.Resampling[how["interpolation"].upper()]
    photo = exported.photos[0]
    image = Image.open(photo).convert("RGB").resize(size, kind)
    pixels = (np.asarray(image) / 255 - how["mean"]) / how["std"]
    batch = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    token_ids, _, _ = session.run(None, {"pixels": batch})
    text = " ".join(words[k] for k in token_ids[0, 0] if k > 2)
    assert text == captioner.load(exported.checkpoint, "cpu").caption(photo, **RULES)


def test_the_graph_is_a_loop_of_standard_operators(exported: Exported) -> None:
    import onnx

    graph = onnx.load(exported.graph)
    onnx.checker.check_model(graph)
    (loop,) = [node for node in graph.graph.node if node.op_type == "Loop"]
    assert len(loop.attribute[0].g.node) < 300, "unrolled"
    assert {one.domain for one in graph.opset_import} == {""} and not graph.functions
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # any batch
    # No step hands keys or values [B, R, ...] on to the next.
    carried = [one.type.tensor_type.shape.dim for one in loop.attribute[0].g.input]
    regions = exported.encoder.regions
    assert carried
    assert all(regions not in [side.dim_value for side in shape[1:3]] for shape in carried)


def test_any_number_of_images_gives_the_hypotheses_of_beam_search(exported: Exported) -> None:
    found = compare(exported.graph, exported.model, exported.encoder)
    assert len({round(float(one[0].score), 4) for one in found}) == 3, "images make no difference"


# What differs in the weights of the output layer alone is written into the graph that is there.
Change = Callable[[nn.Linear], object]


def changed(exported: Exported, folder: Path, change: Change) -> list[list[Hypothesis]]:
    """What the graph finds, held against beam search, with another output layer in both."""
    import onnx

    model = copy.deepcopy(exported.model)
    with torch.no_grad():
        change(model.output_layer)
    content = onnx.load(exported.graph)
    layer = dict(model.output_layer.named_parameters())
    places = [one for one in content.graph.initializer if ".output." in one.name]
    assert len(places) == 2, [one.name for one in content.graph.initializer]
    for one in places:
        values = layer[one.name.rpartition(".")[2]].detach().numpy()
        one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
    onnx.save(content, folder / "changed.onnx")
    return compare(folder / "changed.onnx", model, exported.encoder)


@pytest.mark.parametrize("eos_bias", [20, -30])
def test_sentences_end_early_and_late(exported: Exported, tmp_path: Path, eos_bias: float) -> None:
    """All end at once, with the loop; none ends, and the longest are closed without an end."""

    def change(output: nn.Linear) -> None:
        output.bias[EOS] += eos_bias

    found = changed(exported, tmp_path, change)
    length = RULES["min_length"] if eos_bias > 0 else RULES["max_length"]
    assert all(len(h.token_ids) == length for one in found for h in one)
    assert all(h.finished == (eos_bias > 0) for one in found for h in one)


def test_equal_words_are_ordered_as_in_beam_search(exported: Exported, tmp_path: Path) -> None:
    """With an output layer of zeros every word is as likely as any other."""

    def change(output: nn.Linear) -> None:
        output.weight.zero_()
        output.bias.zero_()

    found = changed(exported, tmp_path, change)
    assert len({one[0].token_ids for one in found}) == 1


def test_a_sentence_that_cannot_go_on_is_closed(exported: Exported, tmp_path: Path) -> None:
    """A single word is possible: no pair of words may come twice, and no end before the third."""
    last = exported.model.vocab_size - 1

    def change(output: nn.Linear) -> None:
        output.bias[:last] = -torch.inf

    found = changed(exported, tmp_path, change)
    assert all([h.token_ids for h in one] == [(last,) * 2] for one in found)
    assert not any(h.finished for one in found for h in one)


def compare(path: Path, model: BaseCaptioner, encoder: Encoder) -> list[list[Hypothesis]]:
    """Hold a graph against beam search for batches of one and of three; the found of three."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = encoder.transform.size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(3))
    for pixels in (images[:1], images):
        found = hypotheses(session.run(None, {"pixels": pixels.numpy()}))
        assert_equal(found, searched(model, encoder, pixels))
    return found


@torch.no_grad()
def searched(model: BaseCaptioner, encoder: Encoder, pixels: Tensor) -> list[list[Hypothesis]]:
    """What beam search finds, on features rounded as those of training."""
    state = model.start(encoder(pixels).half().float())
    found: list[list[Hypothesis]] = beam_search(model.step, state, batch_size=len(pixels), **SEARCH)
    return found


def hypotheses(outputs: list[Any]) -> list[list[Hypothesis]]:
    """The graph's outputs as beam_search gives them."""
    found = []
    for sentences, all_log_probs, scores in zip(*outputs, strict=True):
        one = []
        for ids, log_probs, score in zip(sentences, all_log_probs, scores, strict=True):
            if score > -float("inf"):
                words = [int(token) for token in ids if token != 0]
                finished = bool(words) and words[-1] == EOS
                chances = tuple(log_probs[: len(words)].tolist())
                one.append(
                    Hypothesis(tuple(words[: -1 if finished else None]), chances, score, finished)
                )
        found.append(one)
    return found


def assert_equal(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [(h.token_ids, h.finished) for h in ours] == [
            (h.token_ids, h.finished) for h in theirs
        ]
        for a, b in zip(ours, theirs, strict=True):
            assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)
            assert a.score == pytest.approx(b.score, abs=1e-5)
