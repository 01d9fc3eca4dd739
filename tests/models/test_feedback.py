"""Models with feedback: the regulariser, and scores in pieces."""

from __future__ import annotations

import pytest
import torch
from attention_models import CAPTIONS, IMAGE_OF, make_batch, make_model
from torch import Tensor

from captioner.data.packed import TokenStore
from captioner.models import additive_scores as module
from captioner.models.additive_scores import additive_scores

LAMBDA = 0.7


def test_the_regulariser_is_xus_in_training_alone() -> None:
    model = make_model("show, attend and tell").double()
    batch = make_batch(torch.float64)
    plain = model.loss(*batch)
    maps = model.attention_maps(*batch[:4])
    model.doubly_stochastic = LAMBDA
    _, order = TokenStore(CAPTIONS, bos=1, eos=2).pack(torch.arange(len(CAPTIONS)))
    expected = torch.zeros((), dtype=torch.float64)
    for sequence, caption in enumerate(order.tolist()):
        assert batch[1][sequence] == IMAGE_OF[caption]
        offsets = batch[3].cumsum(0) - batch[3]
        rows = [int(offsets[t]) + sequence for t in range(len(CAPTIONS[caption]) + 1)]
        expected += (1 - maps[rows].sum(0)).square().sum()
    torch.testing.assert_close(model.loss(*batch), plain + LAMBDA * expected)
    torch.testing.assert_close(model.eval().loss(*batch), plain)


def test_the_regulariser_has_the_gradient_of_finite_differences() -> None:
    model = make_model("show, attend and tell").double()
    images, *rest = make_batch(torch.float64)
    model.doubly_stochastic = LAMBDA
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model.loss(x, *rest), (images,), fast_mode=True)


@pytest.mark.parametrize("values", [1, 40, 2**19])
@pytest.mark.parametrize("kept", [0, 2**27])
def test_scores_in_pieces_are_those_at_once(
    values: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CPU_VALUES", values)
    monkeypatch.setattr(module, "KEPT_VALUES", kept)
    generator = torch.Generator().manual_seed(3)
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((7, 4), (3, 5, 4), (4,))
    ]
    images = torch.tensor([2, 0, 0, 2, 1, 2, 0])

    def whole(queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        return (queries.unsqueeze(1) + keys[images]).tanh() @ weight

    def pieces(queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        return additive_scores(queries, keys, images, weight)

    direction = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    found, expected = pieces(*leaves), whole(*leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((found * direction).sum(), leaves)
    theirs = torch.autograd.grad((expected * direction).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_scores_in_float32_are_exact_to_rounding(scale: float) -> None:
    """Also where the hidden layer saturates, or queries and keys cancel."""
    generator = torch.Generator().manual_seed(4)
    keys = scale * torch.randn(2, 50, 64, generator=generator).clamp(-1.3, 1.3)
    drawn = scale * torch.randn(4, 64, generator=generator).clamp(-1.3, 1.3)
    queries = torch.cat([drawn, -keys[1, :3]])
    weight, images = torch.randn(64, generator=generator), torch.tensor([0, 1, 0, 1, 1, 1, 1])
    exact = (queries.double().unsqueeze(1) + keys.double()[images]).tanh() @ weight.double()
    found = additive_scores(queries, keys, images, weight)
    error = (found - exact).abs().max() / weight.abs().sum()
    assert error < 1e-6
