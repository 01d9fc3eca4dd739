"""Adaptive attention: its sentinel is made of the LSTM's own cells, also where gates saturate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_models import R, make_batch, make_model
from torch import Tensor, nn

from captioner.models.adaptive_attention import AdaptiveAttention


def sentinels(model: AdaptiveAttention, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """x_t [N, 2 E] and s_t [N, H] of a batch, as the model computes them."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = model._sentinels

    def watch(inputs: Tensor, *others: Tensor) -> Tensor:
        seen.append((inputs, original(inputs, *others)))
        return seen[-1][1]

    model._sentinels = watch  # type: ignore[method-assign]
    model.loss(*batch)
    del model._sentinels
    return seen[0]


def by_a_loop(model: AdaptiveAttention, inputs: Tensor, batch_sizes: Tensor) -> Tensor:
    """s_t [N, H] by the formulas, with the cells of torch's LSTMCell, step by step."""
    one = nn.LSTMCell(inputs.shape[1], model.hidden_size, dtype=inputs.dtype)
    held: dict[str, Any] = {name: getattr(model.lstm, f"{name}_l0") for name in one.state_dict()}
    h = c = inputs.new_zeros(int(batch_sizes[0]), model.hidden_size)
    found, start = [], 0
    for size in batch_sizes.tolist():
        x, before = inputs[start : start + size], h[:size]
        h, c = torch.func.functional_call(one, held, (x, (before, c[:size])))
        gate = (model.sentinel_input(x) + model.sentinel_hidden(before)).sigmoid()
        found.append(gate * c.tanh())
        start += size
    return torch.cat(found)


@pytest.mark.parametrize("scale", [0.4, 4.0])
def test_the_sentinel_is_that_of_a_step_by_step_lstm(scale: float) -> None:
    """With weights up to 4 the gates saturate; then the gradient, too, is that of the loop."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        model = make_model("adaptive", scale=scale).to(dtype)
        batch = make_batch(dtype)
        inputs, found = sentinels(model, batch)
        expected = by_a_loop(model, inputs, batch[3])
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        weights = [*model.lstm.parameters(), model.sentinel_hidden.weight]
        direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        ours = torch.autograd.grad((found * direction).sum(), weights, retain_graph=True)
        theirs = torch.autograd.grad((expected * direction).sum(), weights)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


def test_the_map_ends_with_the_sentinel() -> None:
    model = make_model("adaptive")
    images, rows, inputs, sizes, _ = make_batch()
    with torch.no_grad():
        model.attention.sentinel_key.weight.zero_()
        model.attention.sentinel_key.bias.fill_(1e3)
        model.attention.score.weight.fill_(10.0)
    maps = model.attention_maps(images, rows, inputs, sizes)
    assert maps.shape == (len(inputs), R + 1)
    assert (maps[:, -1] > 0.5).all()
