"""ONNX graphs of the models that attend: their captions, and keys and values that stay in place."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from attention_models import F, make_model
from onnx_graphs import PIXELS, assert_memory_stays, check, make_encoder
from torch import Tensor

if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):  # seconds to import
    pytest.skip("the extra [onnx] is not installed", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptive", "show, attend and tell", "up-down"])
def test_a_graph_gives_the_captions_of_its_model(tmp_path: Path, name: str) -> None:
    """Features in half precision, as grids are cached. A layered model is exported by
    tests/commands/test_export.py."""
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

    assert_memory_stays(tmp_path / "m.onnx", encoder.regions)
