"""AdamW by its formula, and who is decayed."""

import pytest
import torch
from torch import nn

from training.optimizer import adamw

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
