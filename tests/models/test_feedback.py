"""Models with feedback: the regulariser."""

from __future__ import annotations

import torch
from attention_models import CAPTIONS, IMAGE_OF, make_batch, make_model

from captioner.data.packed import TokenStore

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
