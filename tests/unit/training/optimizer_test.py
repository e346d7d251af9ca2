"""Each optimizer by its formula, and whom it moves and decays."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn

from training.config import OptimizerKind
from training.models.tiny import tiny_model
from training.optimizer import adamw, optimizer_of

RATE, BETA1, BETA2, EPSILON, DECAY = 0.1, 0.8, 0.9, 1e-3, 0.5


@pytest.mark.parametrize("fused", [True, False])
def test_two_updates_follow_the_formula_with_decay_on_matrices_only(fused: bool) -> None:
    model = nn.Linear(2, 1).to(torch.float64)
    optimizer = adamw(model, weight_decay=DECAY, betas=(BETA1, BETA2), epsilon=EPSILON, fused=fused)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in (1, 2):
        for name, parameter in model.named_parameters():
            g = torch.full_like(parameter, 0.3 * step) * torch.arange(1, parameter.numel() + 1).view_as(parameter)
            parameter.grad = g
            first[name] = BETA1 * first[name] + (1 - BETA1) * g
            second[name] = BETA2 * second[name] + (1 - BETA2) * g**2
            unbiased = first[name] / (1 - BETA1**step), second[name] / (1 - BETA2**step)
            decay = DECAY if name == "weight" else 0.0
            expected[name] -= RATE * (unbiased[0] / (unbiased[1].sqrt() + EPSILON) + decay * expected[name])
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-12)


def made(kind: OptimizerKind, model: nn.Module, *, momentum: float = 0.9) -> torch.optim.Optimizer:
    optimizer = optimizer_of(
        kind, model, weight_decay=DECAY, betas=(BETA1, BETA2), epsilon=EPSILON, fused=True, momentum=momentum
    )
    for group in optimizer.param_groups:
        group["lr"] = RATE
    return optimizer


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_moves_the_matrices_inside_and_adamw_the_rest() -> None:
    model, other = tiny_model(seed=1), tiny_model(seed=1)
    muon, alone = made("muon", model), made("adamw", other)
    inside = {name for name, each in model.named_parameters() if each.ndim == 2 and "proj" in name}
    assert len(inside) >= 7
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    momentum = {name: torch.zeros_like(before[name]) for name in inside}
    for step in (1, 2):
        for each, optimizer in ((model, muon), (other, alone)):
            give_gradients(each, step)
            optimizer.step()
        gradients = {name: each.grad for name, each in model.named_parameters()}
        by_adamw = dict(other.named_parameters())
        for name, moved in model.named_parameters():
            if name not in inside:
                assert torch.equal(moved, by_adamw[name]), name
                continue
            gradient = gradients[name]
            assert gradient is not None
            momentum[name] = 0.9 * momentum[name] + 0.1 * gradient
            direction = 0.9 * momentum[name] + 0.1 * gradient
            left, _, right = torch.linalg.svd(direction, full_matrices=False)
            kept = before[name] * (1 - RATE * DECAY)
            update = (kept - moved.detach()) / (RATE * 0.2 * max(moved.shape) ** 0.5)
            before[name] = moved.detach().clone()
            # A few products bring singular values near 1, but for the smallest, and leave the vectors as they are.
            values = torch.diagonal(left.T @ update @ right.T)
            assert values.min() > 0, name
            assert 0.6 < values.median() <= values.max() < 1.3, name
            torch.testing.assert_close(left @ torch.diag(values) @ right, update, rtol=0, atol=0.03)


def test_an_adapter_alone_is_moved_by_muon() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    optimizer = made("muon", model)
    give_gradients(model, 1)
    optimizer.step()
    assert [type(each).__name__ for each in vars(optimizer)["_parts"]] == ["Muon"]


def test_8_bits_move_weights_as_32_do_to_the_coarseness_of_codes() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    other = copy.deepcopy(model)
    coarse, fine = made("adamw_8bit", model), made("adamw", other)
    for step in range(5):
        for each, optimizer in ((model, coarse), (other, fine)):
            give_gradients(each, step)
            optimizer.step()
    assert coarse.state[model[0].weight]["state1"].dtype == torch.uint8
    assert coarse.state[model[0].bias]["state1"].dtype == torch.float32, "it is small"
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        difference = (one - two).abs().mean() / two.abs().mean()
        assert (0.0 if name == "0.weight" else -1.0) < difference < 0.05, name


@pytest.mark.parametrize("kind", get_args(OptimizerKind))
def test_only_matrices_are_decayed(kind: OptimizerKind) -> None:
    model = tiny_model(seed=1)
    optimizer = made(kind, model)
    decayed = {id(each) for group in optimizer.param_groups if group["weight_decay"] for each in group["params"]}
    assert decayed == {id(each) for each in model.parameters() if each.ndim >= 2}
    held = [id(each) for group in optimizer.param_groups for each in group["params"]]
    assert sorted(held) == sorted(id(each) for each in model.parameters())


def test_frozen_weights_are_not_its_business() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[0].requires_grad_(False)
    optimizer = adamw(model, weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8, fused=True)
    held = [each for group in optimizer.param_groups for each in group["params"]]
    assert [id(each) for each in held] == [id(model[1].weight)]


def test_nothing_moves_before_the_step_sets_a_rate() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = adamw(model, weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8, fused=True)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(model.weight, before)
