"""AdamW over the weights that are trained (arXiv 1711.05101).

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²        θ ← θ − η (m̂ / (√v̂ + ε) + λ θ)

λ applies to matrices only. Norm scales and biases are few, and pulling them towards zero changes what a layer outputs,
not how complex it is. The rate η is set by the step from the schedule; the optimizer holds moments and nothing else.
"""

import torch
from torch import nn


def adamw(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float, fused: bool
) -> torch.optim.AdamW:
    """The optimizer of all parameters that require a gradient, in the order in which the model names them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained, "a model without trained weights should have been refused"
    groups = [
        {"params": [each for each in trained if each.ndim >= 2], "weight_decay": weight_decay},
        {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
    ]
    # The rate is a placeholder: the step sets it before every update.
    return torch.optim.AdamW([group for group in groups if group["params"]], 0.0, betas, epsilon, fused=fused)
