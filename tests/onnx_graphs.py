"""Captioners exported to ONNX and compared with beam_search: what the tests of export share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flat_generation import beam_search, flat
from torch import Tensor, nn

from captioner.export.loop import CaptioningLoop
from captioner.export.onnx_graph import write_onnx
from captioner.generation import Hypothesis
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.encoder import Encoder
from captioner.models.transforms import ImageTransform

BOS, EOS = 1, 2
SIZE = 16
PIXELS = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def make_encoder(output: str, feature_dim: int = 5) -> Encoder:
    trunk = nn.Sequential(nn.Conv2d(3, feature_dim, 8, stride=8), nn.Tanh())
    if output == "pooled":
        trunk.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    transform = ImageTransform(size=SIZE, resize="squash")
    return Encoder(trunk, name="tiny", transform=transform, output=output)


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


SEARCH: dict[str, Any] = {"bos": BOS, "eos": EOS, "max_length": 6, "banned": [0, BOS, 3]}


def check(
    path: Path,
    model: BaseCaptioner,
    encoder: Encoder | None,
    *,
    feature_dtype: torch.dtype = torch.float32,
    **search: Any,
) -> list[Any]:
    """Export, which takes seconds, and `compare`."""
    settings = {**SEARCH, **search}
    loop = flat(CaptioningLoop)(model, encoder, feature_dtype=feature_dtype, **settings)
    write_onnx(path, loop, size=SIZE, metadata={"words": "a b"})
    return compare(path, model, encoder, feature_dtype=feature_dtype, **search)


def compare(
    path: Path,
    model: BaseCaptioner,
    encoder: Encoder | None,
    *,
    feature_dtype: torch.dtype = torch.float32,
    **search: Any,
) -> list[Any]:
    """Hold a graph against beam_search for batches of one and of three; the found of three."""
    import onnxruntime

    settings = {**SEARCH, **search}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def start(pixels: Tensor) -> Any:
        if encoder is None:
            return model.start(pixels)
        return model.start(encoder.eval()(pixels).to(feature_dtype).float())

    with torch.no_grad():
        for pixels in (PIXELS[:1], PIXELS):
            outputs = session.run(None, {"pixels": pixels.numpy()})
            found = hypotheses(outputs)
            expected = beam_search(model.step, start(pixels), batch_size=len(pixels), **settings)
            assert_equal(found, expected)
    return found


def assert_memory_stays(path: Path, regions: int) -> None:
    """No step of a loop hands keys or values [B, R, ...] on to the next."""
    import onnx

    loops = [node for node in onnx.load(path).graph.node if node.op_type == "Loop"]
    carried = [
        one.type.tensor_type.shape.dim for loop in loops for one in loop.attribute[0].g.input
    ]
    assert carried
    assert all(regions not in [side.dim_value for side in shape[1:3]] for shape in carried)
