"""A step of every kind of model as an ONNX graph gives what it gives in PyTorch.

The search around the steps is the same for all kinds: test_onnx.py exports it whole and for any
number of images, which takes far longer. That a step is its model's own, test_plain_step.py holds.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from attention_models import MODELS, NONE, F, R, V, layered
from torch import Tensor, nn

from captioner.export.plain_captioners import plain_step
from captioner.export.plain_step import PlainStep
from captioner.models.captioner import Captioner
from captioner.models.language_model import LanguageModel, initialise

if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):  # seconds to import
    pytest.skip("the extra [onnx] is not installed", allow_module_level=True)

BEAMS = 2
KINDS = {
    "several first words, gru": lambda *_: Captioner(
        language_model=LanguageModel(
            vocab_size=V, embedding_dim=10, hidden_size=12, num_layers=2, kind="gru"
        ),
        feature_dim=F,
    ),
    "layered, rnn_tanh": layered("concat", kind="rnn_tanh"),
    "adaptive": MODELS["adaptive"],
    "show, attend and tell": MODELS["show, attend and tell"],
    "up-down": MODELS["up-down"],
}


class FirstStep(nn.Module):
    """The step after the image, of BEAMS rows an image."""

    def __init__(self, step: PlainStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor, words: Tensor) -> tuple[Tensor, ...]:
        """Features [B, R, F], words [B, BEAMS] -> log_probs [B * BEAMS, V], the new state."""
        state, memory = self.step.start(images)
        state = tuple(one.repeat_interleave(BEAMS, dim=1) for one in state)
        log_probs, state = self.step(words.flatten(), state, memory)
        return log_probs, *state


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_graph_takes_the_step_of_its_model(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = KINDS[name](NONE, {})
    initialise(model, scheme="uniform", scale=0.4)
    step = FirstStep(plain_step(model, beam_size=BEAMS)).eval()
    images, words = torch.randn(3, R, F), torch.randint(V, (3, BEAMS))
    path = tmp_path / "step.onnx"
    torch.onnx.export(step, (images, words), path, dynamo=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = [one.name for one in session.get_inputs()]
    found = session.run(None, dict(zip(inputs, (images.numpy(), words.numpy()), strict=True)))
    for ours, expected in zip(found, step(images, words), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-5, atol=1e-5)
