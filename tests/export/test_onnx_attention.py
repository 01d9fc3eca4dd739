"""ONNX graphs of the models that attend: their captions, and keys and values that stay in place."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from attention_models import F, make_model
from onnx_graphs import PIXELS, check, make_encoder
from torch import Tensor

if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):  # seconds to import
    pytest.skip("the extra [onnx] is not installed", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layered, lstm", "adaptive", "show, attend and tell", "up-down"])
def test_a_graph_gives_the_captions_of_its_model(tmp_path: Path, name: str) -> None:
    """Features in half precision, as grids are cached."""
    import onnx

    model, encoder = make_model(name, scale=0.9).eval(), make_encoder("grid", F)
    settings = {"feature_dtype": torch.float16, "beam_size": 3, "n_best": 3}
    found = check(tmp_path / "m.onnx", model, encoder, **settings)
    assert len({round(float(one[0].score), 4) for one in found}) == 3, "images make no difference"

    def first(features: Tensor) -> Tensor:
        """Log-probabilities of the first word."""
        log_probs: Tensor = model.step(torch.tensor([1, 1, 1]), model.start(features))[0]
        return log_probs

    with torch.no_grad():
        features = encoder(PIXELS)
        change = (first(features) - first(features.half().float())).abs().max()
    assert change > 3e-5, "the graph could leave the rounding out"

    loop = next(n for n in onnx.load(tmp_path / "m.onnx").graph.node if n.op_type == "Loop")
    carried = [value.type.tensor_type.shape.dim for value in loop.attribute[0].g.input]
    regions = encoder.regions
    assert all(regions not in [side.dim_value for side in shape[1:3]] for shape in carried)
