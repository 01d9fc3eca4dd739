"""Learning rates, parameter groups and clipping, against figures worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from captioner.training.optimisation import (
    OPTIMIZERS,
    FusedRMSprop,
    clip_gradients,
    make_optimizer,
    parameter_groups,
    schedule_factor,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.projection = nn.Linear(2, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def names_of(model: nn.Module, group: dict) -> set[str]:
    return {n for n, p in model.named_parameters() if any(p is q for q in group["params"])}


def test_groups_hold_each_trainable_parameter_once_at_its_own_rate() -> None:
    model = Model()
    groups = parameter_groups(model, lr=0.1, weight_decay=0.01, lr_by_prefix={"encoder.": 0.001})
    found = {(g["lr"], g["weight_decay"]): names_of(model, g) for g in groups}
    assert found == {
        (0.001, 0.01): {"encoder.weight"},
        (0.001, 0.0): {"encoder.bias"},
        (0.1, 0.01): {"projection.weight"},
        (0.1, 0.0): {"projection.bias"},
    }
    assert all(g["base_lr"] == g["lr"] for g in groups)


def test_a_prefix_is_a_prefix_and_not_a_part() -> None:
    model = nn.ModuleDict({"my_encoder": nn.Linear(1, 1, bias=False)})
    (group,) = parameter_groups(model, lr=0.1, weight_decay=0, lr_by_prefix={"encoder.": 0.001})
    assert group["lr"] == 0.1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_moves_each_group_at_its_rate(name: str) -> None:
    model = Model()
    groups = parameter_groups(model, lr=0.1, weight_decay=0.0, lr_by_prefix={"encoder.": 0.0})
    optimizer = make_optimizer(name, groups)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.projection(model.encoder(torch.ones(1, 2))).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"projection.weight", "projection.bias"}


def test_settings_reach_the_optimizer_and_adam_is_torchs() -> None:
    parameter, twin = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    mine = make_optimizer("adam", [{"params": [parameter], "lr": 0.1}], betas=(0.5, 0.9), eps=1e-3)
    theirs = torch.optim.Adam([twin], lr=0.1, betas=(0.5, 0.9), eps=1e-3, foreach=False)
    for p, optimizer in ((parameter, mine), (twin, theirs)):
        for step in range(4):
            p.grad = torch.tensor([0.3 * step, -1.0])
            optimizer.step()
    torch.testing.assert_close(parameter, twin)


def test_a_constant_schedule_warms_up_linearly_to_one() -> None:
    factors = [schedule_factor(k, total_steps=10, warmup_steps=4) for k in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule_factor(0, total_steps=10) == 1.0


def test_cosine_and_linear_fall_from_one_to_zero() -> None:
    for schedule, middle in (("cosine", 0.5), ("linear", 0.5)):
        factors = [schedule_factor(k, total_steps=8, schedule=schedule) for k in range(9)]
        assert factors[0] == 1.0
        assert factors[4] == pytest.approx(middle)
        assert factors[8] == pytest.approx(0.0, abs=1e-15)
        assert all(a > b for a, b in pairwise(factors))
    assert schedule_factor(2, total_steps=8, schedule="cosine") == pytest.approx(
        (1 + math.sqrt(0.5)) / 2
    )
    assert schedule_factor(2, total_steps=8, schedule="linear") == 0.75
    assert schedule_factor(99, total_steps=8, schedule="linear") == 0.0


def test_warm_up_multiplies_the_schedule() -> None:
    factor = schedule_factor(1, total_steps=10, warmup_steps=4, schedule="linear")
    assert factor == pytest.approx(0.5 * 0.9)


def gradients(*values: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    return parameters


def test_clipping_is_by_value_first_and_then_by_the_norm_of_all() -> None:
    parameters = gradients([30.0, -1.0], [-40.0, 0.5])
    norm = clip_gradients(parameters, norm=1.0, value=2.0)
    clipped = torch.tensor([2.0, -1.0, -2.0, 0.5])
    assert float(norm) == pytest.approx(float(clipped.norm()))
    found = torch.cat([p.grad for p in parameters])
    torch.testing.assert_close(found, clipped / clipped.norm(), rtol=1e-5, atol=0)


def test_clipping_leaves_small_gradients_and_absent_ones_alone() -> None:
    parameters = [*gradients([0.3, -0.4]), nn.Parameter(torch.zeros(2))]
    assert float(clip_gradients(iter(parameters), norm=1.0, value=1.0)) == pytest.approx(0.5)
    assert parameters[0].grad.tolist() == pytest.approx([0.3, -0.4])
    assert parameters[1].grad is None


def test_without_limits_nothing_is_clipped() -> None:
    (parameter,) = gradients([1e6])
    assert clip_gradients([parameter], norm=None, value=None) is None
    assert parameter.grad.item() == 1e6


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"momentum": 0.9}])
def test_fused_rmsprop_is_torchs(settings: dict[str, float]) -> None:
    """A parameter without a gradient stays; the state goes over to torch's optimiser and back."""
    torch.manual_seed(0)
    shapes = ((33, 7), (5,), (4, 4))
    mine = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    theirs = [p.detach().clone().requires_grad_() for p in mine]
    kinds = {"lr": 0.01, "alpha": 0.97, "eps": 1e-8, **settings}
    fused, plain = FusedRMSprop(mine, **kinds), torch.optim.RMSprop(theirs, **kinds)
    for step in range(20):
        if step == 10:
            states = fused.state_dict(), plain.state_dict()
            plain.load_state_dict(states[0])
            fused.load_state_dict(states[1])
        for one, other in zip(mine[:2], theirs[:2], strict=True):
            gradient = torch.randn_like(one)
            one.grad, other.grad = gradient.clone(), gradient.clone()
        fused.step()
        plain.step()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert fused.state_dict()["state"].keys() == plain.state_dict()["state"].keys() == {0, 1}


def test_values_are_clipped_where_there_is_a_gradient() -> None:
    weights = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    weights[0].grad = torch.tensor([-3.0, 0.5, 9.0])
    clip_gradients(weights, norm=None, value=1.0)
    assert weights[0].grad.tolist() == [-1.0, 0.5, 1.0] and weights[1].grad is None
